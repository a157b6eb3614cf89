"""Model sizes by name: the toys, and every released SigLIP and SigLIP 2 model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siglip_ref.architecture.conventions import PRESETS, Conventions
from siglip_ref.errors import UsageError


@dataclass(frozen=True)
class Tower:
    """One transformer: width C, depth, hidden width of the MLP, heads H."""

    width: int
    depth: int
    mlp: int
    heads: int


@dataclass(frozen=True)
class Config:
    """A two-tower model. Frozen: change it with `dataclasses.replace`."""

    name: str
    image: Tower
    text: Tower
    image_size: tuple[int, int]  # height, width in pixels
    patch: int
    vocabulary: int
    text_length: int
    text_head: bool = True  # a linear layer from the text tower's width to D
    naflex: bool = False  # SigLIP 2's variable resolution: image_size is that of the stored position table
    bottleneck: int = 0  # columns of a token table that a matrix widens (mSigLIP: 96 of B's 768); 0: the tower's width
    conventions: Conventions = PRESETS["big_vision"]

    @property
    def embed(self) -> int:
        """D. The image tower has no projection, so its width is the embedding's."""
        return self.image.width

    @property
    def grid(self) -> tuple[int, int]:
        """Whole patches per column and per row; what is left over at the rim is ignored."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def patches(self) -> int:
        """N of the image tower."""
        return self.grid[0] * self.grid[1]


def config_of(sizes: Mapping[str, Any], conventions: Mapping[str, Any]) -> Config:
    """The model that a record spells out, as `dataclasses.asdict` and JSON give it."""
    fields = dict(sizes) | {side: Tower(**sizes[side]) for side in ("image", "text")}
    height, width = sizes["image_size"]
    return Config(**fields | {"image_size": (height, width), "conventions": Conventions(**conventions)})


# Source: big_vision models/vit.py, decode_variant; the g-opt row: SigLIP 2, section 2.
TOWERS = {
    "mu": Tower(32, 1, 128, 2),
    "M": Tower(512, 12, 2048, 8),
    "B": Tower(768, 12, 3072, 12),
    "L": Tower(1024, 24, 4096, 16),
    "So400m": Tower(1152, 27, 4304, 16),
    "g-opt": Tower(1536, 40, 6144, 16),
}


def _toys() -> dict[str, Config]:
    # Dimensions differ pairwise (2, 3, 4, 5, 6, 7, 9, 10, 12, 13, 17, 29), and height from width, so that no mix-up
    # of two of them can go unseen.
    tiny = Config("tiny", Tower(10, 2, 13, 2), Tower(12, 2, 17, 2), (12, 28), 4, 29, 9)
    # 64 pixels and a byte vocabulary (256 bytes, three special ids): big_vision fixes only the tower and the patch.
    mu = Config("mu/16", TOWERS["mu"], TOWERS["mu"], (64, 64), 16, 259, 16)
    return {"tiny": tiny, "mu/16": mu}


# name: tower, patch, pixels. Source: the paper's model cards, in the order of their README.
_SIGLIP = (
    *(("B", 16, side) for side in (224, 256, 384, 512)),
    *(("L", 16, side) for side in (256, 384)),
    *(("So400m", 14, side) for side in (224, 384)),
)
_SIGLIP_I18N = (("B", 16, 256), ("So400m", 16, 256))
_SIGLIP2 = (
    ("B", 32, 256),
    *(("B", 16, side) for side in (224, 256, 384, 512)),
    *(("L", 16, side) for side in (256, 384, 512)),
    *(("So400m", 14, side) for side in (224, 384)),
    *(("So400m", 16, side) for side in (256, 384, 512)),
    *(("g-opt", 16, side) for side in (256, 384)),
)


def _released() -> dict[str, Config]:
    sizes = {}

    def add(name: str, tower: str, patch: int, side: int, vocabulary: int, **quirks: object) -> None:
        text = TOWERS["So400m" if tower == "g-opt" else tower]  # g-opt's text tower is narrower
        settings = {"text_length": 64, "vocabulary": vocabulary, **quirks}
        sizes[name] = Config(name, TOWERS[tower], text, (side, side), patch, **settings)  # type: ignore[arg-type]

    for tower, patch, side in _SIGLIP:
        length = 16 if (tower, side) == ("So400m", 224) else 64
        add(f"{tower}/{patch}-{side}", tower, patch, side, 32_000, text_length=length)
    for tower, patch, side in _SIGLIP_I18N:
        add(f"{tower}/{patch}-i18n-{side}", tower, patch, side, 250_000, text_head=tower != "So400m")
    for tower, patch, side in _SIGLIP2:
        add(f"siglip2-{tower}/{patch}-{side}", tower, patch, side, 256_000)
    for tower in ("B", "So400m"):
        add(f"siglip2-{tower}/16-naflex", tower, 16, 256, 256_000, naflex=True)
    return sizes


SIZES = _toys() | _released()


def config(name: str) -> Config:
    """The model of this name.

    >>> config("tiny").patches
    21
    """
    if name not in SIZES:
        from siglip_ref.errors import near

        raise UsageError(
            expected="a model size: " + ", ".join(SIZES),
            got=repr(name),
            cause="",
            repair='sr.config("B/16-256"), or dataclasses.replace(sr.config("tiny"), ...) for a size of your own',
            near=near(name, SIZES),
        )
    return SIZES[name]
