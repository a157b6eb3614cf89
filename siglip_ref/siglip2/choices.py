"""What the authors of SigLIP 2 did not publish: fields without a default, and what other code chose, by its name."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from siglip_ref.architecture.sizes import Tower
from siglip_ref.errors import UsageError
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.process.data import read_toml
from siglip_ref.siglip2.average import Mean


@dataclass(frozen=True)
class Captioning:
    """The decoder and its loss.

    decoder : E, depth, hidden width, H; published: the text tower's, with half of its depth
    start, pad : ids before the first word and after the last
    pad_keys : whether padding is "seen" by attention, or "hidden"
    mean : over an "example"'s words first, or over every "token"
    smoothing : of the labels
    tasks : weights of the losses of caption, referring expression, grounded caption
    gelu, eps : of MLPs and norms
    rows, columns : tokens and words of a chunk of the loss; None: all at once
    """

    decoder: Tower
    start: int
    pad: int
    pad_keys: Literal["seen", "hidden"]
    mean: Mean
    smoothing: float
    tasks: tuple[float, float, float]
    gelu: GeluForm
    eps: float
    rows: int | None = None
    columns: int | None = None


@dataclass(frozen=True)
class Distillation:
    """One head and its loss.

    hidden, bottleneck, prototypes : widths of the head
    gelu, eps : of the head and of its unit length
    student_temperature, teacher_temperature, centre_momentum : numbers
    normaliser : "centre", or "sinkhorn" with so many `rounds`
    """

    hidden: int
    bottleneck: int
    prototypes: int
    gelu: GeluForm
    eps: float
    student_temperature: float
    teacher_temperature: float
    centre_momentum: float
    normaliser: Literal["centre", "sinkhorn"]
    rounds: int = 0


@dataclass(frozen=True)
class Choices:
    """All of them.

    shared_head : masked patches go through the local head
    patch_centre : over "all" patches, or those that are "masked"
    """

    captioning: Captioning
    local: Distillation
    mask: Distillation
    shared_head: bool
    patch_centre: Literal["all", "masked"]


class Source(NamedTuple):
    """One row of the table: what, what the paper says, what may be chosen, and whose code chooses so."""

    what: str
    published: str
    chosen: str
    code: str


def captioning(code: Literal["big_vision"], decoder: Tower, **changes: object) -> Captioning:
    """What CapPa's published code does, with fields changed by name; the sum of three tasks is nobody's code.

    >>> captioning("big_vision", Tower(12, 2, 17, 2), pad_keys="hidden").mean
    'example'
    """
    _known(code, "big_vision")
    own = Captioning(decoder, 0, 0, "seen", "example", 0.0, (1.0, 1.0, 1.0), "tanh", 1e-6)
    return replace(own, **changes)  # type: ignore[arg-type]  # replace checks the names itself


def distillation(code: Literal["dino"], prototypes: int = 65536, **changes: object) -> Distillation:
    """What DINO's published code does, with fields changed by name.

    >>> distillation("dino", hidden=14).student_temperature
    0.1
    """
    _known(code, "dino")
    own = Distillation(2048, 256, prototypes, "erf", 1e-12, 0.1, 0.04, 0.9, "centre")
    return replace(own, **changes)  # type: ignore[arg-type]  # replace checks the names itself


def halved(tower: Tower, odd: Literal["down", "up"]) -> Tower:
    """The decoder of a text tower: the same shape, half the depth; how 27 is halved is not published.

    >>> [halved(Tower(1152, 27, 4304, 16), odd).depth for odd in ("down", "up")]
    [13, 14]
    """
    return replace(tower, depth=(tower.depth + (odd == "up")) // 2)


def _known(code: str, name: str) -> None:
    if code != name:
        raise UsageError(name, repr(code), "", f'"{name}" with fields changed by name')


_SOURCES = read_toml(__file__, "sources")["sources"]
TABLE = tuple(Source(*row) for row in _SOURCES)
