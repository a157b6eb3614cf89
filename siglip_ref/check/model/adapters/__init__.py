"""Other people's models behind one interface: our names and layouts in, loss, activations and gradients out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array

Dtype = Literal["float64", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Run:
    """What one forward and backward pass gave, all in our names and layouts, as float32 or float64 arrays.

    names : what the model calls our parameters and activations, for the report
    not_checked : activations that could not be read, each with the reason
    unread : what the model calls parameters of which it does not read the numbers that it was given
    elsewhere : those of them that it reads by another name
    """

    loss: Array
    activations: dict[str, Array]
    grads: dict[str, Array]
    names: Mapping[str, str] = field(default_factory=dict)
    not_checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Hint:
    """Something the model's own settings give away: id of the mistake's catalogue entry, place, evidence, repair."""

    id: str
    place: str
    evidence: str
    repair: str


def kinds_of(model: object) -> list[tuple[str, str]]:
    """Name and package of the model's class, and of all that it comes of: a subclass is of its kind, too."""
    return [(kind.__name__, kind.__module__.split(".")[0]) for kind in type(model).__mro__]


@runtime_checkable
class Adapter(Protocol):
    """A model that `siglip_ref.check_model` can judge. Write one for a model of your own: docs, examples/."""

    @property
    def name(self) -> str:
        """Title of the report."""

    @property
    def config(self) -> Config:
        """Sizes, and the conventions that the model claims to follow; of a tower alone `sr.one_tower(...)`."""

    def parameters(self, dtype: Dtype) -> dict[str, Array]:
        """The model's own weights in our names and layouts, rounded to dtype (held in float32 or float64 arrays)."""

    def run(self, params: Mapping[str, Array], images: Any, tokens: Array, dtype: Dtype) -> Run:
        """Loss, activations and gradients at the given weights, computed in dtype; the model is left as it was.

        images : array, shape (B, height, width, 3); for a NaFlex model `siglip_ref.model.naflex.Patches`. A tower alone
        has as its loss the sum of what it gives times `sr.probe_objective(shape)`
        """
