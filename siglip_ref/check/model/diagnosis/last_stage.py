"""What is wrong between the embeddings and the loss, at any of the scales at which a model was run.

The reference's last stage starts from what the model itself had pooled, so a mistake in a tower does not count here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.explain import explain, share_explained
from siglip_ref.check.engine.findings import FINDING
from siglip_ref.check.engine.seen import Seen, is_wrong
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.findings import and_more
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.scales import EMBEDS, POOLED, Judged, Scale, given_at, judge_at, last_stage
from siglip_ref.check.model.stages import readable
from siglip_ref.mistakes import CATALOGUE, Mistake, reference, suspects
from siglip_ref.mistakes.change import shortened
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array, softplus
from siglip_ref.report.compare import compare
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

# an overflow is part of how a mistake looks, so it is made in an arithmetic of the same range
_RANGE: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "bfloat16": np.float32, "float16": np.float16}
_STRAIGHT = 1e-3  # logits that lie so near to a line, relative to the largest, are a scale and a bias
_HARDLY = 1e-8  # softplus and sigmoid differ so little from a straight line beyond 20


LAST = ("logits", "loss", "log_scale", "bias")


def explain_last_stage(judged: Judged, cfg: Config, conventions: Conventions) -> list[Finding]:
    """Mistakes of the catalogue that explain loss and gradients at every scale; else what the logits are there."""
    given, seen = dict[str, dict[str, Array]](), list[Seen]()
    exact, dtype = judged.judge.exact.activations, judged.judge.dtype
    # gradients of a tower that are wrong at its own scale are the tower's affair
    of_towers = {row.name for row in judged.details if row.verdict == "FAIL" and not row.probe} - set(LAST)
    for run, scale, usual in zip(judged.runs, judged.scales, judged.judges, strict=True):
        judge = usual
        shown = readable(run.activations, exact, np.float64)
        pooled = {name: shown.get(name, exact[name]) for name in POOLED if name in exact}
        given[scale.label] = given_at(scale, pooled)
        if of_towers & pooled.keys():  # other embeddings, other cancellations: noise of their own
            whole = judged.judge
            moved = replace(whole, exact=replace(whole.exact, activations=exact | pooled))
            judge = judge_at(scale, moved, cfg, conventions)
        here = _seen(run, scale, last_stage(given[scale.label], cfg, conventions), judge)
        seen += [one for one in here if one.name not in of_towers]
    wrong = [one for one in seen if is_wrong(one)]
    facts, due = _of_logits(judged)
    if not facts and (not wrong or _begins_before(judged, conventions, cfg)):
        return []
    kind = _RANGE[dtype]

    def predict(mistakes: Sequence[Mistake]) -> dict[tuple[str, str], Array]:
        spec = reference(tuple(edit for mistake in mistakes for edit in mistake.edits))
        made = dict[tuple[str, str], Array]()
        for label, start in given.items():
            rounded = {name: np.asarray(value, kind) for name, value in start.items()}
            with np.errstate(all="ignore"):
                found = last_stage(rounded, cfg, conventions, spec)
            made |= {(label, name.removeprefix("d ")): value for name, value in found.items()}
        return made

    found = explain(seen, suspects(ranks=False), predict)
    where = _where(wrong, judged)
    named = {one.id for one in found} & CATALOGUE.keys()
    # of a single mistake that explains a good part only, the logits themselves say more
    alone = [share_explained(seen, predict([one])) for one in suspects(ranks=False) if one.id in named]
    if named and not (facts and len(named) == len(found) == 1 and max(alone) < FINDING):
        return [
            replace(
                one,
                evidence=f"{one.evidence}; {where}",
                repair=CATALOGUE[one.id].change if one.id in named else one.repair,
            )
            for one in found
        ]
    if facts:
        evidence = "; ".join([_inputs(judged), *facts, _given_logits(judged, wrong), where])
        return [Finding(DERIVED if due else "unknown", "logits", "", evidence, due or _REPAIR)]
    if dtype == "float64" and all(_error(one) < _HARDLY for one in wrong):
        evidence = f"off by less than 1e-8, as torch's softplus is, a straight line beyond its threshold of 20; {where}"
        return [
            Finding("softplus-threshold", "loss", "", evidence, "F.softplus(x, threshold=50), or -F.logsigmoid(-x)")
        ]
    names = list(dict.fromkeys(one.name for one in wrong))
    evidence = "no mistake of the catalogue explains the loss"
    if "loss" not in names:
        evidence = (
            f"the gradient of {names[0]}{and_more(len(names) - 1)} is wrong, and no mistake of the catalogue is it"
        )
    return [Finding("unknown", names[0], "", f"{evidence}; {where}", _repair(wrong))]


def _begins_before(judged: Judged, conventions: Conventions, cfg: Config) -> bool:
    """Whether the embeddings are not what follows from what was pooled, and everything is right given them."""
    exact, kind, eps = judged.judge.exact.activations, conventions.embed_norm, conventions.embed_norm_eps
    astray = False
    for run, scale, judge in zip(judged.runs, judged.scales, judged.judges, strict=True):
        shown = readable(run.activations, exact, np.float64)
        if not {*EMBEDS} <= shown.keys():
            return False
        for name, pooled in zip(EMBEDS, ("image/pool", "text/head" if cfg.text_head else "text/pool"), strict=True):
            if pooled in shown:
                follows = SPECIFICATION.normalize.forward(shown[pooled], kind, eps)[0]
                astray |= not compare(name, shown[name], follows, judged.judge.of_value[name]).right
            else:  # then what was pooled is not known
                astray |= not compare(name, shown[name], exact[name], judged.judge.of_value[name]).right
        found = sigmoid_loss(shown[EMBEDS[0]], shown[EMBEDS[1]], scale.log_scale, scale.bias)
        # what is longer than it should be makes larger logits, which round by as much more
        longer = max(1.0, *(_top(shown[name]) / _top(exact[name]) for name in EMBEDS))
        right = compare("loss", run.loss, found.loss, longer * judge.of_value["loss"]).right
        for name, expected in (("log_scale", found.d_log_scale), ("bias", found.d_bias)):
            off = float(np.abs(np.reshape(run.grads[name], ()) - expected))
            # slopes are differences of numbers up to 1, also where all of them are next to nothing
            right &= off <= longer * judge.of_grad[name] * max(1.0, float(np.abs(expected)))
        if not right:
            return False
    return astray


def _where(off: Sequence[Seen], judged: Judged) -> str:
    """At which scales the loss is right, and at which not."""
    labels, in_loss = {one.probe for one in off}, any(one.name == "loss" for one in off)
    wrong = [scale.label for scale in judged.scales if scale.label in labels]
    right = [scale.label for scale in judged.scales if scale.label not in labels]
    if not wrong:
        return "loss and gradients are right at every scale"
    what = "loss and gradients are wrong" if in_loss else "every value is right, gradients are wrong"
    of_embeddings = f"on the model's own embeddings {what} at {', '.join(wrong)}"
    return of_embeddings + (f", and right at {', '.join(right)}" if right else "")


def _inputs(judged: Judged) -> str:
    """Whether what logits are made of is right."""
    rows = {row.name: row for row in judged.details if row.kind == "activation" and not row.probe}
    wrong = [name for name in ("image/embed", "text/embed") if not rows[name].right]
    if wrong:
        return f"{' and '.join(wrong)} deviates already, and the logits are not what follows from it"
    return "image/embed and text/embed are right, the logits made of them are not"


def _given_logits(judged: Judged, wrong: Sequence[Seen]) -> str:
    """Whether the loss follows from the logits that the model shows."""
    if not wrong:
        return "the loss is not computed from these logits"
    for run, judge in zip(judged.runs, judged.judges, strict=True):
        logits = np.asarray(run.activations["logits"], np.float64)
        if not np.isfinite(logits).all():
            continue
        signed = np.where(np.eye(len(logits), dtype=bool), -logits, logits)
        if not compare("loss", run.loss, softplus(signed).sum() / len(logits), judge.of_value["loss"]).right:
            return "the loss is not the loss of these logits either"
    return "the loss is right, given these logits"


def _seen(run: Run, scale: Scale, right: Mapping[str, Array], judge: Judge) -> Iterator[Seen]:
    """Loss and gradients of one run; not the logits, which a model may compute apart from its loss."""
    for name, expected in right.items():
        plain = name.removeprefix("d ")
        if name == "logits" or plain in judge.overflows:
            continue
        got = run.loss if name == "loss" else run.grads[plain]
        level = judge.of_value[name] if name == "loss" else judge.of_grad[plain]
        if level < 1:
            yield Seen(scale.label, plain, np.reshape(got, np.shape(expected)), expected, level * _top(expected))


def _of_logits(judged: Judged) -> tuple[list[str], str]:
    """Where the logits are another scale and bias than the parameters say, or rounded: by one formula, or at each
    scale; and what is due in the place of a formula."""
    lines = list[tuple[Scale, Array]]()
    told, crooked = list[str](), False
    rounded = dict(_ROUNDED) if {judged.judge.dtype, judged.judge.coarsest} <= {"float64", "float32"} else {}
    for run, scale, judge in zip(judged.runs, judged.scales, judged.judges, strict=True):
        shown = readable(run.activations, judged.judge.exact.activations, np.float64)
        if not {"logits", "image/embed", "text/embed"} <= shown.keys():
            continue
        embeds, logits = (shown["image/embed"], shown["text/embed"]), shown["logits"]
        similarity, factor, limit = embeds[0] @ embeds[1].T, scale.scale, judge.of_value["logits"]
        for words, form in _ROUNDED.items():
            if not compare("logits", logits, factor * form(*embeds) + scale.bias, limit).right:
                rounded.pop(words, None)
        if compare("logits", logits, factor * similarity + scale.bias, limit).right:
            lines.append((scale, np.array([factor, scale.bias])))  # of one formula at every scale
            continue
        fitted = np.polyfit(similarity.ravel(), logits.ravel(), 1)
        rest = np.polyval(fitted, similarity) - logits
        if np.max(np.abs(rest)) > max(_STRAIGHT, limit) * _top(logits):
            told.append(f"at {scale.label} the logits are no straight line of the similarity")
            crooked = True
        else:
            lines.append((scale, fitted))
            fitted[np.abs(fitted) < _STRAIGHT * _top(logits)] = 0.0
            found, meant = (f"{a:.4g} x similarity {b:+.4g}" for a, b in (fitted, (factor, scale.bias)))
            told.append(f"at {scale.label} the logits are {found}, not {meant}")
    if told and rounded:
        words = f"exp(log_scale) * similarity + bias with {' or '.join(rounded)}"
        return [f"at every scale the logits are {words}"], _UNROUNDED
    formula = _formula(lines) if told and not crooked and len(lines) > 1 else ""
    return ([formula], "logits = exp(log_scale) * similarity + bias") if formula else (told, "")


def _rounded(image: Array, text: Array, form: str, before: bool, after: bool) -> Array:
    image, text = (shortened(x, form) if before else x for x in (image, text))
    return shortened(image @ text.T, form) if after else image @ text.T


_WHERE = {
    (True, False): "embeddings rounded to {form} before their product",
    (False, True): "the similarity rounded to {form}",
    (True, True): "embeddings rounded to {form} before their product, which is rounded to {form}, too",
}
_ROUNDED: dict[str, Callable[[Array, Array], Array]] = {
    words.format(form=form): partial(_rounded, form=form, before=before, after=after)
    for form in ("bfloat16", "float16", "tf32")
    for (before, after), words in _WHERE.items()
}
_UNROUNDED = "the product of the embeddings in the model's own precision: no cast, no autocast, no tf32 around it"


def _formula(lines: Sequence[tuple[Scale, Array]]) -> str:
    """One formula for the slopes and intercepts at all of these scales, or ""."""
    forms = [list[str](), list[str]()]
    for place, known in enumerate((_SLOPES, _INTERCEPTS)):
        for text, form in known.items():
            due = [form(scale.scale, scale.bias) for scale, _ in lines]
            sizes = [max(abs(fitted[place]), 0.01 * abs(fitted[0])) for _, fitted in lines]
            if all(
                abs(fitted[place] - x) <= _STRAIGHT * size
                for (_, fitted), x, size in zip(lines, due, sizes, strict=True)
            ):
                forms[place].append(text)
    if not all(forms):
        return ""
    now = f"{forms[0][0]} * similarity + {forms[1][0]}"
    return f"at every scale the logits are {now}, where exp(log_scale) * similarity + bias is due"


_SLOPES: dict[str, Callable[[float, float], float]] = {
    "exp(log_scale)": lambda t, b: t, "exp(-log_scale)": lambda t, b: 1 / t, "log_scale": lambda t, b: np.log(t),
    "1": lambda t, b: 1.0, "exp(2 log_scale)": lambda t, b: t * t, "exp(log_scale / 2)": lambda t, b: np.sqrt(t),
    "exp(exp(log_scale))": lambda t, b: np.exp(t), "minimum(exp(log_scale), 100)": lambda t, b: min(t, 100.0),
}  # fmt: skip
_INTERCEPTS: dict[str, Callable[[float, float], float]] = {
    "bias": lambda t, b: b, "exp(log_scale) * bias": lambda t, b: t * b, "0": lambda t, b: 0.0,
    "-bias": lambda t, b: -b, "bias / exp(log_scale)": lambda t, b: b / t, "2 * bias": lambda t, b: 2 * b,
}  # fmt: skip

_REPAIR = "look at what happens to scale, bias and logits before the loss: a clamp, a limit, a second exp"


def _repair(wrong: Sequence[Seen]) -> str:
    if not all(np.isfinite(one.got).all() for one in wrong):
        return "something overflows, or is log(0): -logsigmoid(x) is max(-x, 0) + log1p(exp(-|x|))"
    if all(one.name != "loss" for one in wrong):
        return "look at the backward pass of the loss: a detached tensor, a custom backward, a clipped gradient"
    return "look at how the loss is computed from the logits: a clamp, a threshold, a custom backward"


def _error(one: Seen) -> float:
    return float(np.max(np.abs(one.got - one.exact)) / _top(one.exact))


def _top(x: Array) -> float:
    return float(np.max(np.abs(x), initial=0.0))
