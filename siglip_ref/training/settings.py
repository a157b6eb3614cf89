"""What a training is: every choice, as data. Loads nothing heavy: the command line is made from it."""

from dataclasses import asdict, dataclass, fields
from typing import Any

# of a recipe, before those of the data: a step of SigLIP 2's costs three times as much, and teaches more
DEFAULTS: dict[str, dict[str, float]] = {"siglip": {}, "siglip2": {"steps": 600, "batch": 64}}


@dataclass(frozen=True)
class Settings:
    """Every choice that the numbers of a training depend on.

    data : "shapes", "digits", a folder or a captions.csv; model : a size; "" takes the data's own, "small" the
        same with towers of mu; bottleneck : columns of its token table, which a matrix widens, 0: as wide as the tower
    steps, batch, lr : 0 takes the data's own; batch is of all ranks together
    decay : of AdamW, multiplied by lr; of big_vision, not
    warmup : steps; -1: a tenth of all
    loss : "sigmoid", "softmax" (CLIP's), or "labels" (a linear classifier on the image encoder)
    init, freeze : a released checkpoint to start from; "image" keeps its image tower as it is
    learn : with a frozen image tower: "text", its text tower at a tenth of the rate; "head", its text head alone
    log_scale, bias : initial values, of a model trained from nothing; without_bias keeps the bias at 0
    recipe : "siglip", or "siglip2": captions from the start, distillation and masked prediction
    resolution : pixels of the images in the last twentieth of siglip2 (0: as before)
    beta2 : of AdamW
    negatives, kept : so many negatives for each positive (0: all), "random", "hard" or "easy" ones; for studies
    accumulate : batches whose gradients are averaged for one step, each with its own negatives only
    micro : pairs a rank computes at once (0: all); changes memory, not the gradient
    shuffled : this share of the pairs has the caption of another pair; for studies of noise
    """

    data: str = "shapes"
    model: str = ""
    bottleneck: int = 0
    steps: int = 0
    batch: int = 0
    lr: float = 0.0
    optimiser: str = "adamw"
    beta2: float = 0.95
    decay: float | None = None
    warmup: int = -1
    clip: float = 1.0
    loss: str = "sigmoid"
    init: str = ""
    freeze: str = ""
    learn: str = ""
    log_scale: float | None = None
    bias: float | None = None
    without_bias: bool = False
    recipe: str = "siglip"
    resolution: int = 0
    accumulate: int = 1
    micro: int = 0
    shuffled: float = 0.0
    negatives: float = 0.0
    kept: str = "random"
    dtype: str = "float32"
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def names() -> list[str]:
        """Of all settings."""
        return [field.name for field in fields(Settings)]


class TrainingStopped(RuntimeError):  # noqa: N818
    """A training that cannot go on: at which step, why, what to do. The last checkpoint is good."""

    def __init__(self, step: int, cause: str, repair: str) -> None:
        super().__init__(f"at step {step}: {cause}; {repair}")
        self.step, self.cause, self.repair = step, cause, repair
