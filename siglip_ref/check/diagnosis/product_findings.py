"""What a report says of products that are rounded, and the argument that declares it."""

from collections.abc import Sequence

from siglip_ref.check.diagnosis.products import EITHER, LOGITS, OF_IMAGE, OF_TEXT, Part
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.report.data import Finding

INPUTS, OUTPUTS, IN_FLOAT32, LOW_LOGITS = (
    "inputs-rounded-to-16-bits",
    "outputs-rounded-to-16-bits",
    "products-in-float32",
    "logits-low-precision",
)
ROUNDINGS = (INPUTS, OUTPUTS, IN_FLOAT32)
DECLARED = ("tf32", "bfloat16")  # what products= takes
_BITS = {
    "float32": "float32: 24 bits",
    "bfloat16": "bfloat16: 8 bits",
    "float16": "float16: 11 bits, fewer below 2^-14",
    "tf32": "tf32: 11 bits, exponents as in float32",
    EITHER: "tf32 or float16: 11 bits; no number below 2^-14 tells which",
}


def product_findings(parts: Sequence[Part], times: float) -> list[Finding]:
    """One for each kind of rounding. times: the largest deviation, in units of the noise."""
    of_id: dict[str, list[Part]] = {}
    low = {part.form for part in parts if _id(part) == LOW_LOGITS}
    for part in parts:  # a cast of the logits rounds their gradient on its way back, before both products
        of_id.setdefault(LOW_LOGITS if _is_way_back(part) and part.form in low else _id(part), []).append(part)
    return [_finding(id, found, times) for id, found in of_id.items()]


def _finding(id: str, parts: Sequence[Part], times: float) -> Finding:
    told = []
    for form in dict.fromkeys(part.form for part in parts):
        back = id == LOW_LOGITS and any(_is_way_back(part) for part in parts)
        kept = [part for part in parts if part.form == form and not (id == LOW_LOGITS and _is_way_back(part))]
        places = ", ".join(f"{part.place} of {part.product}" for part in kept) + ", and their gradient" * back
        told.append(f"{places}: rounded to {_BITS[form]}")
    tensors = ", ".join(dict.fromkeys(name for part in parts for name in part.tensors))
    evidence = (
        f"{CATALOGUE[id].text}; {'; '.join(told)}; explains all rows that are wrong, up to {times:.0f} times the noise"
    )
    return Finding(id, tensors, "", evidence, CATALOGUE[id].repair)


def _is_way_back(part: Part) -> bool:
    return part.place == "inputs" and part.product in (OF_IMAGE, OF_TEXT)


def _id(part: Part) -> str:
    if part.form == "float32":
        return IN_FLOAT32
    if part.product == LOGITS and part.form == "bfloat16":
        return LOW_LOGITS
    return INPUTS if part.place == "inputs" else OUTPUTS


def declaring(parts: Sequence[Part], dtype: str) -> str:
    """The argument products= under which these roundings would be right; empty if there is none."""
    forms = {part.form for part in parts}
    if not parts or dtype != "float32" or any(part.place != "inputs" for part in parts):
        return ""
    forms = {"tf32"} if forms <= {"tf32", EITHER} else forms
    return forms.pop() if len(forms) == 1 and forms <= set(DECLARED) else ""


def declared_otherwise(argument: str, dtype: str) -> Finding:
    """Right, but not as float32 products are computed."""
    rounds = f"products round what goes into them to {argument}"
    evidence = f"declared was {dtype}, but {rounds}; everything is right where that is allowed"
    repair = f'if that is meant, declare it: check_loss(fn, products="{argument}")'
    return Finding("convention", "", "", evidence, repair)
