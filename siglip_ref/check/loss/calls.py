"""The calls of one check of a loss: what came back, and what was refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from siglip_ref.check.call.answers import in_a_line
from siglip_ref.check.call.frameworks import Framework, Inputs, Outcome, Setting, Way
from siglip_ref.check.call.resources import Cost, measured
from siglip_ref.check.expected.expected import Convention, Truth
from siglip_ref.check.expected.probes import Dims, Probe
from siglip_ref.check.expected.repeated import Size
from siglip_ref.errors import UsageError
from siglip_ref.report.compare import Row

Loss = Callable[..., Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Refusal:
    """A call that raised. words: what, in a line; memory: for want of it, which is nobody's mistake."""

    probe: Probe
    label: str
    words: str
    memory: bool

    def __str__(self) -> str:
        return f"{self.label}: {self.words}"

    def as_row(self) -> Row:
        """For a refusal that is a mistake."""
        nan = float("nan")
        return Row("the call", "value", nan, nan, nan, nan, "", "FAIL", self.words, self.label, trouble="refused")


@dataclass
class Run:
    """One check: what is called, how, and what came back."""

    fn: Loss
    framework: Framework
    setting: Setting
    dims: Dims
    progress: Progress | None
    size: Size = "small"
    costs: list[Cost] = field(default_factory=list)
    products: str = ""  # the argument that would declare how fn rounds its products, once it is known
    refused: list[Refusal] = field(default_factory=list)
    first_refusal: Exception | None = None
    outcomes: dict[str, tuple[Probe, Outcome, Truth]] = field(default_factory=dict)

    @property
    def ways(self) -> list[Way]:
        """The clauses of the contract that can be tried: nobody asks a frozen input for its gradient."""
        frozen = {f"only {name}" for name in self.setting.frozen}
        return [way for way in self.framework.ways if way not in frozen]

    def call(self, probe: Probe, convention: Convention, way: Way, label: str) -> Outcome | Refusal:
        """What fn gives; a refusal is remembered, too."""
        if self.progress:
            self.progress(label)
        scale = probe.scale if convention.scale == "linear" else probe.log_scale
        inputs = Inputs(probe.image_embed, probe.text_embed, scale, probe.bias)
        try:
            with measured(*probe.shape, self.setting.device) as cost:
                outcome = self.framework.call(self.fn, inputs, self.setting, way)
            if way == "plain":
                self.costs.append(cost)
            return outcome
        except UsageError:
            raise
        except Exception as error:  # whatever a user's function raises is its answer
            self.first_refusal = self.first_refusal or error
            memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
            self.refused.append(Refusal(probe, label, in_a_line(error), memory))
            return self.refused[-1]
