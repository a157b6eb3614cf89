"""What the authors of SigLIP 2 did not publish: fields without a default, and what other code chose, by its name."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from siglip_ref.architecture.sizes import Tower
from siglip_ref.errors import UsageError
from siglip_ref.ops.gelu import GeluForm
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


NOT = "not published"
TABLE = (
    Source("decoder's depth", "half the text tower's", "odd depths: down or up", "`halved`"),
    Source("decoder's biases", NOT, "none in attention, MLP and norms of blocks", "big_vision: CapPa"),
    Source("start and padding", NOT, "0 and 0", "big_vision: CapPa"),
    Source("padding as keys", NOT, "seen", "big_vision: CapPa"),
    Source("mean of the caption loss", NOT, "over each example's words, then over examples", "big_vision: CapPa"),
    Source("parallel prediction", "half of the captions", "a flag for each example", "big_vision: CapPa"),
    Source("three tasks", "three passes", "a sum with weights", "nobody's"),
    Source("box as text", NOT, "bins and order are arguments", "PaliGemma: 1024, y1 x1 y2 x2"),
    Source("decoder's token table", NOT, "its own, not the text tower's", "big_vision: CapPa"),
    Source("label smoothing", NOT, "0", "big_vision: CapPa"),
    Source("head", "an MLP", "2048, 2048, 256, prototypes; erf-GELU", "DINO, iBOT, DINOv2"),
    Source("prototypes", NOT, "an argument", "DINO 65536, iBOT 8192, TIPS 32k"),
    Source("temperatures", NOT, "student 0.1, teacher 0.04", "DINO; 0.07 after a warm-up in iBOT, DINOv2"),
    Source("teacher's normaliser", NOT, "centre, momentum 0.9", "DINO; Sinkhorn in DINOv2"),
    Source("teacher's momentum", NOT, "an argument: fixed or a cosine", "SILC fixed; DINO cosine from 0.996"),
    Source("pooled feature", "the pooled representation", "before it is made a unit vector", "DINO"),
    Source("pairs of views", "8 local with 1 global", "all 8", "DINO skips pairs of equal index"),
    Source("positions of local crops", NOT, "bilinear with antialias", "NaFlex; DINO bicubic"),
    Source("heads of the two losses", "heads", "one each", "iBOT (teacher shared), DINOv2 either"),
    Source("masked share", "half", "count and pattern are data", "TIPS: random"),
    Source("mask token", "random at first", "before the position", "iBOT, DINOv2: zeros at first"),
    Source("mean of the mask loss", NOT, "over each image's masked patches, then over images", "iBOT, DINOv2"),
    Source("centre of patches", NOT, "all patches, or masked ones", "iBOT all; DINOv2 masked"),
    Source("first chunk of curation", NOT, "uniform, or by the diagonal", "two ports of JEST"),
    Source("division of scores", NOT, "none, or by 2 |chosen| + 1", "one port of JEST"),
    Source("bottleneck's bias and norm", NOT, "none", "nobody's"),
    Source("bottleneck's start", NOT, "normal: its product's rows are as long as a whole table's", "nobody's"),
    Source("count of Adam for new parameters", NOT, "the optimiser's state is an argument", "optax: one count for all"),
)
