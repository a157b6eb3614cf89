"""A loss whose operators are registered with Torch: the contract of a registration, beside that of a loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from siglip_ref.mistakes import CATALOGUE
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding

if TYPE_CHECKING:
    from siglip_ref.check.call.custom_ops import OfOp
    from siglip_ref.check.loss.subject import ComparedLoss, LossSubject

REGISTRATION = "custom-op-registration"


@dataclass(frozen=True)
class Registered:
    """What opcheck says against the operators of a loss: faults, and what could not be tested."""

    faults: "list[OfOp]"
    untested: "list[OfOp]"

    @property
    def rows(self) -> list[Row]:
        """A row for each fault."""
        nan = float("nan")
        return [
            Row(one.op, "value", nan, nan, nan, nan, "", "FAIL", f"{one.test}: {one.words}", "opcheck")
            for one in self.faults
        ]

    @property
    def not_checked(self) -> list[str]:
        """In a line for each operator."""
        return [f"{op} under torch.compile: no fake kernel is registered" for op in {one.op for one in self.untested}]

    @property
    def findings(self) -> list[Finding]:
        """One for all faults of an operator."""
        by_op: dict[str, list[str]] = {}
        for one in self.faults:
            by_op.setdefault(one.op, []).append(f"{one.test}: {one.words}")
        said, repair = "torch.library.opcheck: ", CATALOGUE[REGISTRATION].repair
        return [Finding(REGISTRATION, op, "", said + "; ".join(told), repair) for op, told in by_op.items()]


NONE = Registered([], [])


def registered(subject: "LossSubject", found: "ComparedLoss") -> Registered:
    """Of a loss in Torch, at the first call that worked."""
    first = next(iter(found.plain.values()), None)
    if subject.framework.name != "torch" or first is None:
        return NONE
    from siglip_ref.check.call.custom_ops import of_custom_ops

    told = of_custom_ops(subject.fn, subject.inputs(first.probe, found.convention), subject.setting)
    return Registered([one for one in told if one.fault], [one for one in told if not one.fault])
