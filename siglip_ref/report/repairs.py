"""What to change in one's own code, for each way in which a derived loss differs from SigLIP's."""

from typing import TYPE_CHECKING, Any

from siglip_ref.report.words import WORDS

if TYPE_CHECKING:
    from siglip_ref.check.diagnosis.derive.formula import Backward, Difference
    from siglip_ref.check.diagnosis.derive.sets import OfPairs
    from siglip_ref.check.diagnosis.derive.shapes import Number


def repair_of(one: "Difference", declared: bool = False) -> str:
    """One line; what is said of the difference itself where no line of code would do. declared : a variant is meant, of
    which SigLIP's own weights, labels and divisor are no repair"""
    got: Any = one.got
    if one.of == "softmax":
        return WORDS["repair_softmax"][one.place]
    if declared and one.place in ("weights", "function", "reduction"):
        return "make it what was declared, or declare what it is"
    if one.place in WORDS["repair_place"]:
        return WORDS["repair_place"][one.place]
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
        return _EXTRA if "softplus" in got[0] else "take it out of the loss"
    if one.place == "rows" and got.mapped and getattr(one.right, "kind", "as given") != "as given":
        return "divide each row by its own length, and do nothing else to it: F.normalize(x, dim=-1)"
    if one.place == "rows" and got.mapped:
        return "give the product the rows themselves, and the gradients the rows that the product had"
    if one.place == "rows" and got.undivided:
        return "the gradient of x / |x| is (d - (d . x) x / |x|^2) / |x|"
    if one.place == "rows":
        return "the length needs its gradient: no detach" if got.detached else WORDS["repair_rows"][got.kind]
    return _backward(got)


_EXTRA = "rows that fill up a block have the similarity 0: leave them out of the sum"


def _reduction(got: "OfPairs") -> str:
    if (got.factor, got.power, got.less) == (1.0, -2.0, 0.0):
        return 'replace .mean() by .sum() / len(image_embed); if you want the mean: check_loss(fn, reduction="mean")'
    if (got.power, got.less) == (0.0, 0.0) and got.factor == 1:
        return "divide by len(image_embed)"
    if (got.power, got.less) == (-1.0, 0.0):
        return (
            f"divide the loss by {got.factor:.6g}" if got.factor > 1 else f"multiply the loss by {1 / got.factor:.6g}"
        )
    return "divide the sum over all pairs by len(image_embed)"


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
    if not names:
        return "add the bias to the logits" + (": it is unused" if of == "both" else f" of the {of}, too")
    if names == {"b": -1.0}:
        return "add the bias, do not subtract it"
    if "b" in names:
        return "add the bias alone: logits = log_scale.exp() * similarity + bias"
    return "add the bias outside of the scaling: logits = log_scale.exp() * similarity + bias"


def _backward(got: "Backward") -> str:
    tensors = ", ".join((got.tensor, *got.alike))
    if got.kind == "none":
        return f"look for detach(), .data, .item() or no_grad between {tensors} and the loss"
    factor = f", or take the factor out of the gradient of {tensors}" * (got.kind == "times")
    return "let autograd differentiate the value" + factor
