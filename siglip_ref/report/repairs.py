"""What to change in one's own code, for each way in which a derived loss differs from SigLIP's."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from siglip_ref.report.words import WORDS

if TYPE_CHECKING:
    from siglip_ref.check.diagnosis.derive.formula import Backward, Difference, Formula
    from siglip_ref.check.diagnosis.derive.sets import OfPairs
    from siglip_ref.check.diagnosis.derive.shapes import Number


def repair_of(one: "Difference", declared: bool = False, formula: "Formula | None" = None) -> str:
    """One line; what is said of the difference itself where no line of code would do. declared : a variant is meant, of
    which SigLIP's own weights, labels and divisor are no repair; formula : the whole that differs"""
    got: Any = one.got
    if one.of == "softmax":
        return WORDS["repair_softmax"][one.place]
    if declared and one.place in ("weights", "targets", "function", "reduction"):
        return "make it what was declared, or declare what it is"
    if one.place in WORDS["repair_place"]:
        clip = one.place == "coupled" and all(part.kind.startswith("softmax, ") for part in got)
        besides = WORDS["repair_place"]["clip"] * clip + _weighed(formula) * (one.place == "weights")
        return WORDS["repair_place"][one.place] + besides
    if one.place == "reduction":
        return _reduction(got)
    if one.place in ("scale", "offset"):
        return _scale(got, one.of) if one.place == "scale" else _offset(got, one.of)
    if one.place == "function":
        if got.name == "softplus + linear" and one.of == "both":
            meant = f"; if they are meant so, check_loss(fn, label_smoothing={2 * got.parameters[0]:.6g})"
            return WORDS["repair_function"][got.name] + meant
        return WORDS["repair_function"].get(
            got.name, "-F.logsigmoid(z * logits), with z = 1 on the diagonal and -1 elsewhere"
        )
    if one.place == "extra":
        return _EXTRA if "softplus" in got[0] else WORDS["repair_place"]["left_over" if got[0] == "b" else "added"]
    if one.place == "rows" and got.mapped and getattr(one.right, "kind", "as given") != "as given":
        return "divide each row by its own length, and do nothing else to it: F.normalize(x, dim=-1)"
    if one.place == "rows" and got.mapped:
        return "give the product the rows themselves, and the gradients the rows that the product had"
    if one.place == "rows" and got.undivided:
        return WORDS["repair_rows"]["undivided"]
    if one.place == "rows":
        return "the length needs its gradient: no detach" if got.detached else WORDS["repair_rows"][got.kind]
    return _backward(got)


_EXTRA = "rows that fill up a block have the similarity 0: leave them out of the sum"


def _weighed(formula: "Formula | None") -> str:
    """The declaration that two numbers are, where they give the weights at every B."""
    rules = [(term.sign, *rule) for term in formula.terms for rule in term.weights] if formula else []
    forms = {(sign, *where.names): form for sign, where, form in rules}
    own, other = (forms.get(kind) for kind in ((-1, "diagonal"), (1, "not diagonal")))
    if len(rules) != 2 or not own or not other or other != replace(own, factor=other.factor):
        return ""
    if (own.less, own.to) != (0.0, 0.0) or own.power not in _REDUCED or min(own.factor, other.factor) <= 0:
        return ""
    weights = f"weights=({own.factor}, {other.factor}){_REDUCED[own.power]}"
    return f"; if pairs are meant to weigh so, check_loss(fn, {weights})"


_DIVIDED = "divide the sum over all pairs by len(image_embed)"
_REDUCED = {-1.0: "", -2.0: ', reduction="mean"'}


def _reduction(got: "OfPairs") -> str:
    if got.to:
        return _DIVIDED
    if (got.factor, got.power, got.less) == (1.0, -2.0, 0.0):
        return WORDS["repair_place"]["mean"]
    if (got.power, got.less) == (0.0, 0.0) and got.factor == 1:
        return "divide by len(image_embed)"
    if (got.power, got.less) == (-1.0, 0.0):
        return (
            f"divide the loss by {got.factor:.6g}" if got.factor > 1 else f"multiply the loss by {1 / got.factor:.6g}"
        )
    return _DIVIDED


def _scale(got: "Number", of: str) -> str:
    names = {name for name, _ in got.parts}
    if got.high < float("inf") or got.low > -float("inf"):
        return "take the clamp off the scale: log_scale.exp() as it is"
    if not names & {"exp(s)", "s", "exp(-s)", "1/s", "softplus(s)", "exp(2 s)", "exp(s/2)", "s^2", "sqrt(s)", "log(s)"}:
        if of != "both":
            return f"multiply the similarities of the {of} by log_scale.exp(), too"
        return (
            "pass log_scale to the loss: it is unused" if "b" not in "".join(names) else "scale and bias are exchanged"
        )
    if names == {"s"}:
        return "log_scale.exp() * similarity"
    if names in ({"exp(-s)"}, {"1/s"}):
        return "multiply by the scale instead of dividing"
    return "logits = log_scale.exp() * similarity + bias"


def _offset(got: "Number", of: str) -> str:
    names = dict(got.parts)
    if not any("b" in name for name in names):
        return "add the bias to the logits" + (": it is unused" if of == "both" else f" of the {of}, too")
    if names == {"b": -1.0}:
        if of == "both":
            return "add the bias, do not subtract it"
        return "the sign z is of the whole logit: -F.logsigmoid(z * (log_scale.exp() * similarity + bias))"
    if "b" in names:
        return "add the bias alone: logits = log_scale.exp() * similarity + bias"
    return "add the bias outside of the scaling: logits = log_scale.exp() * similarity + bias"


def _backward(got: "Backward") -> str:
    tensors = ", ".join((got.tensor, *got.alike))
    if got.kind == "none":
        return f"look for detach(), .data, .item() or no_grad between {tensors} and the loss"
    if got.kind != "times":
        lengths = any("not divided" in part.after for part in got.parts)
        return WORDS["repair_rows"]["undivided"] if lengths else WORDS["repair_backward"].get(got.kind, _DERIVE)
    once = [(where.names, form.factor, form.power, form.less, form.to) for where, form in got.rules] == [_ONCE]
    inverse = _INVERSE.get(got.scalar.parts) if once else ""
    return f"multiply the gradient of {tensors} by {inverse}" if inverse else _DERIVE


_ONCE = (("everywhere",), 1.0, 0.0, 0.0, 0.0)
_INVERSE: dict[Any, str] = {(("exp(-s)", 1.0),): "exp(log_scale)", (("exp(s)", 1.0),): "exp(-log_scale)"}
_DERIVE = WORDS["repair_place"]["derivative"]
