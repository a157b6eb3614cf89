"""One tower alone: which of a model's parameters and activations it has, and where it ends."""

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from siglip_ref.architecture.sizes import Config
from siglip_ref.errors import UsageError

Side = Literal["image", "text"]
UpTo = Literal["pooled", "last", "last-but-one"]
ENDS = {
    "pooled": "its pooled vector",
    "last": "its last hidden state, behind the final norm",
    "last-but-one": "the output of its last-but-one block",
}


@dataclass(frozen=True)
class OneTower(Config):
    """A tower without the other one, and without a loss. Make one with `one_tower`.

    side : which of the two; the fields of the other one mean nothing
    up_to : where it ends; one that ends at the last-but-one block has a depth without the last
    """

    side: Side = "image"
    up_to: UpTo = "pooled"

    @property
    def end(self) -> str:
        """The activation that it ends at.

        >>> from siglip_ref.architecture.sizes import config
        >>> one_tower(config("tiny"), "text").end, one_tower(config("tiny"), "image", "last-but-one").end
        ('text/head', 'image/block00/+mlp')
        """
        if self.up_to == "pooled":
            return "text/head" if self.side == "text" and self.text_head else f"{self.side}/pool"
        depth = (self.image if self.side == "image" else self.text).depth
        return f"{self.side}/norm" if self.up_to == "last" else f"{self.side}/block{depth - 1:02d}/+mlp"

    @property
    def words(self) -> str:
        """As reports say it."""
        return f"the {self.side} tower alone, up to {ENDS[self.up_to]}"


def one_tower(cfg: Config, side: Side, up_to: UpTo = "pooled") -> OneTower:
    """One tower of a model.

    Parameters
    ----------
    cfg : the whole model, or one of which only this side means anything
    side : "image" or "text"
    up_to : "pooled", the vector (text: behind the head); "last", the last hidden state, without pooling; or
        "last-but-one", the output of the block before the last, as many vision language models take it

    Returns
    -------
    OneTower : the `config` of an Adapter

    Examples
    --------
    >>> import siglip_ref as sr
    >>> sr.one_tower(sr.config("B/16-256"), "image", "last").words
    'the image tower alone, up to its last hidden state, behind the final norm'
    """
    if side not in get_args(Side) or up_to not in ENDS:
        raise UsageError(
            expected=f'side "image" or "text"; up_to one of {", ".join(ENDS)}',
            got=f"side {side!r}, up_to {up_to!r}",
            cause="",
            repair='sr.one_tower(cfg, "image", "last")',
        )
    settings = {field.name: getattr(cfg, field.name) for field in fields(Config)}
    if up_to == "last-but-one":
        tower = settings[side]
        if tower.depth < 2:
            raise UsageError(
                expected="a tower of two blocks at least",
                got=f"{tower.depth}",
                cause="it has no block before the last",
                repair='up_to="last"',
            )
        settings[side] = replace(tower, depth=tower.depth - 1)
    if side == "text" and up_to != "pooled":
        settings["text_head"] = False
    return OneTower(**settings, side=side, up_to=up_to)


def sides_of(cfg: Config) -> tuple[Side, ...]:
    """The towers that are there."""
    return (cfg.side,) if isinstance(cfg, OneTower) else ("image", "text")


def has(cfg: Config, name: str) -> bool:
    """Whether a parameter or an activation of the whole model is one of this one's."""
    if not isinstance(cfg, OneTower):
        return True
    side, _, part = name.partition("/")
    gone = {"pooled": (), "last": ("pool", "head"), "last-but-one": ("pool", "head", "norm")}[cfg.up_to]
    return side == cfg.side and part.split("/")[0] not in (*gone, "embed")
