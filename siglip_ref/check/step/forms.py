"""Places of the optimiser's text, and what is written there instead: of optimisers, trainers and restarts.

In the texts `_still` are parameters that never move.
"""

from dataclasses import dataclass

OPTIM, PROCEDURES = "model/optim.py", "model/procedures.py"


@dataclass(frozen=True)
class Place:
    """old : stands once in context, which stands once in the file; forms : what is said, and what is written."""

    file: str
    context: str
    old: str
    repair: str
    forms: tuple[tuple[str, str], ...]


_TIME = "keep one count of optimiser steps, beginning at 1, and save and load it"
_CLIP = "clip once, the gradients of all that is trained, by their common length"
_DECAY = "let what is declared decay, by lr times decay, and nothing else"
_SAVED = "save and load the optimiser's whole state, in its own precision: both moments and the count of steps"
_NONE = "State(state.steps, {n: v for n, v in state.slots.items() if not n.startswith(%r)})"
_LATER = "({} if k == 2 else state)"


def _at_restart(what: str, text: str) -> tuple[str, str]:
    return f"{what} at the last step", _LATER.format(text)


_RESTARTED = Place(PROCEDURES, "grads, state, rule", "state", _SAVED, (
    _at_restart("a count of steps that begins again, with moments that are kept,", "State(0, state.slots)"),
    _at_restart("a count of steps that is one less, with moments that are kept,", "State(1, state.slots)"),
    _at_restart("a count of steps that is one more, with moments that are kept,", "State(3, state.slots)"),
    _at_restart("moments that are zero, with a count of steps that is kept,", "State(state.steps, {})"),
    _at_restart("a first moment that is zero", _NONE % "first/"),
    _at_restart("a second moment that is zero", _NONE % "second/"),
    _at_restart("moments of the image tower that are zero", "State(state.steps, {n: v for n, v in state.slots.items() "
                "if n.split('/')[1] != 'image'})"),
    _at_restart("moments of the text tower that are zero", "State(state.steps, {n: v for n, v in state.slots.items() "
                "if n.split('/')[1] != 'text'})"),
    _at_restart("moments rounded to bfloat16", "State(state.steps, {n: bfloat16(v) for n, v in state.slots.items()})"),
    _at_restart("moments rounded to float16", "State(state.steps, {n: np.float16(v).astype(v.dtype) "
                "for n, v in state.slots.items()})"),
    ("no moments of earlier steps, at any step", "State(state.steps, {})"),
    ("no state of earlier steps, at any step", "State()"),
))  # fmt: skip
_SCHEDULE = Place(PROCEDURES, "rule, schedule(k)", "schedule(k)", "one schedule(k) for a step, k = 0 at the first", (
    ("a schedule that begins again at the last step", "schedule(0 if k == 2 else k)"),
    ("the schedule of the step after", "schedule(k + 1)"),
    ("the schedule of the step before", "schedule(max(k - 1, 0))"),
    ("no schedule", "1.0"),
))  # fmt: skip
_COUNTED = Place(OPTIM, "np.maximum(norm(kept) + eps, max_norm)", "norm(kept)", _CLIP, (
    ("frozen parameters' gradients counted in the clip", "norm(grads)"),
    ("only the towers' gradients counted in the clip", "norm({n: g for n, g in kept.items() if '/' in n})"),
    ("only the image tower's gradients counted in the clip",
     "norm({n: g for n, g in kept.items() if n[:6] == 'image/'})"),
    ("only the text tower's gradients counted in the clip",
     "norm({n: g for n, g in kept.items() if n[:5] == 'text/'})"),
    ("only kernels' gradients counted in the clip", "norm({n: g for n, g in kept.items() if kernels(n)})"),
    ("a clip by the mean of squares, not their sum", "norm(kept) / np.sqrt(sum(g.size for g in kept.values()))"),
    ("a clip by the largest number in place of the length", "max(np.abs(g).max() for g in kept.values())"),
))  # fmt: skip
_SHORTENED = Place(OPTIM, "{name: factor * g for name, g in kept.items()}",
                   "{name: factor * g for name, g in kept.items()}", _CLIP, (
    ("frozen parameters that still decay", "{n: (0 * g if frozen(n) else factor * g) for n, g in grads.items()}"),
    ("gradients that are not clipped", "kept"),
    ("log_scale and bias not clipped, the towers", "{n: factor * g if '/' in n else g for n, g in kept.items()}"),
    ("the image tower alone clipped", "{n: factor * g if n[:6] == 'image/' else g for n, g in kept.items()}"),
    ("the text tower alone clipped", "{n: factor * g if n[:5] == 'text/' else g for n, g in kept.items()}"),
    ("kernels alone clipped", "{n: factor * g if kernels(n) else g for n, g in kept.items()}"),
    ("each number of the gradients cut to -max_norm .. max_norm, not their length",
     "{n: np.clip(g, -max_norm, max_norm) for n, g in kept.items()}"),
))  # fmt: skip
_KEPT = Place(OPTIM, "for name, g in grads.items() if not frozen(name)", "not frozen(name)",
              "give every parameter a gradient, also the loss's own; what stays is declared: frozen=lambda name: ...", (
    ("{still} without gradients, which are not counted in the clip either", "not frozen(name) and name not in _still"),
    ("frozen parameters that are trained", "True"),
))  # fmt: skip

ADAMW = (
    _RESTARTED, _SCHEDULE, _COUNTED, _SHORTENED, _KEPT,
    Place(OPTIM, "steps = state.steps + 1\n    grads = clip(grads, rule.max_norm, rule.clip_eps", "state.steps + 1",
          _TIME, (
        ("a count of steps that begins at 2", "max(state.steps + 1, 2)"),
        ("a count of steps that stays at 1", "1"),
        ("a count of steps that advances by 2", "state.steps + 2"),
    )),
    Place(OPTIM, "_narrow(1 - beta1, p) * g", "_narrow(1 - beta1, p)", "first = beta1 first + (1 - beta1) g", (
        ("a first moment that adds up whole gradients (beta1 m + g)", "1.0"),
    )),
    Place(OPTIM, "_narrow(1 - beta2, p) * (g * g)", "(g * g)", "second = beta2 second + (1 - beta2) g^2", (
        ("squares of gradients less their mean in the second moment (AdaBelief)", "(g - first) ** 2"),
        ("sizes of gradients, not squares, in the second moment", "np.abs(g)"),
    )),
    Place(OPTIM, "length = np.sqrt(second)", "np.sqrt(second)", "divide by the root of the second moment", (
        ("the largest second moment so far (AMSGrad)", "np.sqrt((slots.update({f'max/{name}': np.maximum(second, "
         "state.slots.get(f'max/{name}', 0 * p))}), slots[f'max/{name}'])[1])"),
        ("the second moment itself, not its root", "second"),
    )),
    Place(OPTIM, "_narrow(np.sqrt(1 - _power(beta2, steps)), p)", "_narrow(np.sqrt(1 - _power(beta2, steps)), p)",
          "divide the moments by 1 - beta^steps", (
        ("no bias correction of the second moment", "1.0"),
        ("a bias correction of the second moment without its root", "_narrow(1 - _power(beta2, steps), p)"),
    )),
    Place(OPTIM, "_narrow(lr / (1 - _power(beta1, steps)), p)", "_narrow(lr / (1 - _power(beta1, steps)), p)",
          "divide the moments by 1 - beta^steps", (
        ("no bias correction of the first moment", "_narrow(lr, p)"),
    )),
    Place(OPTIM, "+ rule.eps\n        step", "rule.eps", "add eps to the root of the corrected second moment", (
        ("no eps", "0.0"),
        ("eps added before the bias correction", "rule.eps / np.sqrt(1 - _power(beta2, steps))"),
    )),
    Place(OPTIM, "_wide(rule.decay if rule.decays(name) else 0.0, p)", "rule.decays(name)", _DECAY, (
        ("everything decayed", "True"),
        ("nothing decayed", "False"),
        ("all but vectors and numbers decayed", "p.ndim > 1"),
        ("all weights but biases and norms decayed", "name.split('/')[-1] not in ('bias', 'beta', 'gamma')"),
        ("what should decay and what should not exchanged", "not rule.decays(name)"),
    )),
    Place(OPTIM, "_narrow(1 - lr * decay, p)", "1 - lr * decay", _DECAY, (
        ("a decay that is not multiplied by lr", "1 - decay"),
        ("a decay without the schedule", "1 - _wide(rule.lr, p) * rule.rates(name) * decay"),
        ("a decay that is added", "1 + lr * decay"),
        ("a decay by half of it", "1 - lr * decay / 2"),
        ("twice the decay", "1 - 2 * lr * decay"),
    )),
    Place(OPTIM, "step * (first / length)", "(first / length)", "p = p - lr first / (root of second + eps)", (
        ("Nesterov's momentum", "((_narrow(beta1, p) * first + _narrow(1 - beta1, p) * g) / length)"),
        ("the gradient itself in place of the first moment", "(g / length)"),
        ("the sign of the first moment", "np.sign(first)"),
        ("the first moment alone", "first"),
        ("a decay within Adam's gradient, too", "((first + _narrow(1 - beta1, p) * decay * p) / length)"),
    )),
)  # fmt: skip

BIG_VISION = (
    _RESTARTED, _SCHEDULE, _COUNTED, _SHORTENED, _KEPT,
    Place(OPTIM, "1 - _power(_wide(steps, p), -_wide(rule.power, p))", "_wide(steps, p)", _TIME, (
        ("a rate of the second moment that is a step late (counted from 2)", "_wide(steps + 1, p)"),
        ("a rate of the second moment that is two steps late (counted from 3)", "_wide(steps + 2, p)"),
        ("a rate of the second moment counted from 0", "_wide(max(steps - 1, 1), p)"),
    )),
    Place(OPTIM, "np.where(rate < cap, rate, cap)", "np.where(rate < cap, rate, cap)",
          "rate = min(beta2_cap, 1 - steps^-power)", (
        ("a rate of the second moment without its cap", "rate"),
        ("a rate of the second moment that is always its cap", "cap"),
    )),
    Place(OPTIM, "_narrow(1 - momentum, p) * update", "_narrow(1 - momentum, p)", "m = momentum m + (1 - momentum) u", (
        ("a momentum that adds up whole updates (m = momentum m + u)", "1.0"),
    )),
    Place(OPTIM, "_narrow(_wide(rule.lr, p) * rate, p) * first", "first", "multiply the momentum by lr", (
        ("no momentum", "update.reshape(p.shape)"),
        ("Nesterov's momentum", "(_narrow(momentum, p) * first + _narrow(1 - momentum, p) * update.reshape(p.shape))"),
        ("a momentum divided by 1 - momentum^steps", "(first / (1 - _power(momentum, steps)))"),
        ("steps times the length of their parameter", "(first * np.maximum(np.sqrt((p * p).mean()), 1e-3))"),
    )),
    Place(OPTIM, "update.reshape(p.shape)\n        rate", "update", "the update is not clipped once more", (
        ("updates clipped to the length 1 of a number", 
         "(update / np.maximum(1.0, np.sqrt((update * update).mean())))"),
    )),
    Place(OPTIM, "step + _narrow(_wide(rule.decay, p), p) * p", "_wide(rule.decay, p)", _DECAY, (
        ("a decay multiplied by lr", "_wide(rule.decay * rule.lr, p)"),
        ("nothing decayed", "_wide(0.0, p)"),
        ("a decay by half of it", "_wide(rule.decay / 2, p)"),
        ("twice the decay", "_wide(rule.decay * 2, p)"),
        ("a decay that is added", "_wide(-rule.decay, p)"),
    )),
    Place(OPTIM, "if rule.decays(name):", "rule.decays(name)", _DECAY, (
        ("everything decayed", "True"),
        ("all but vectors and numbers decayed", "p.ndim > 1"),
        ("what should decay and what should not exchanged", "not rule.decays(name)"),
    )),
    Place(OPTIM, "square = g * g + rule.eps", "rule.eps", "add eps = 1e-30 to the squares", (
        ("no eps", "0.0"),
        ("1e-8 in place of eps", "0.00000001"),
    )),
)  # fmt: skip
