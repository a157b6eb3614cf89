"""What a training reads: numbered pictures with captions, a part for training and a part that is held out."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from siglip_ref.architecture.sizes import Config
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

NOISE = 8  # numbers in [0, 1) that vary one picture (all but the first) and its caption (the first)
STILL = (0.0,) + (0.5,) * (NOISE - 1)  # a picture as it is, with its first caption


class Unreadable(Exception):  # noqa: N818  # the picture is at fault, not the program
    """A picture that cannot be read; it is skipped and counted."""


def none_readable(what: str, count: int, first: str) -> UsageError:
    """Where all are skipped there is nothing to train on, or to judge with. first : one of them, and why."""
    return UsageError(
        expected=f"{what} that can be read",
        got=f"{count} of which none can; the first: {first}",
        cause="files of another kind, or all broken",
        repair="open one with an image viewer to see",
    )


class Item(NamedTuple):
    """A picture with its captions, as far as a training remembers it: bytes of its file, digests of it and of them."""

    name: str
    bytes: int
    content: str
    captions: str

    @staticmethod
    def of(name: str, size: int, content: str, captions: Sequence[str]) -> "Item":
        """Of captions as they are."""
        digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16] if captions else ""
        return Item(name, size, content, digest)


@dataclass(frozen=True)
class Captioned:
    """Pictures 0 to count - 1.

    picture : of a number and its noise: uint8, shape (height, width, 3); raises Unreadable
    caption : of a number and its noise
    names : of the pictures, for messages
    labels : the class of each picture, where there are classes
    captions : of a number: all that it may be given
    region : of a number and its noise: words for what is there, and its box (x1, y1, x2, y2) as shares of the sides
    still : whether a picture is the same each time, whatever its noise
    """

    count: int
    picture: Callable[[int, Array], Array]
    caption: Callable[[int, Array], str]
    names: Callable[[int], str] = str
    labels: Sequence[int] | None = None
    captions: Callable[[int], Sequence[str]] = lambda number: ()
    region: Callable[[int, Array], tuple[str, tuple[float, ...]]] | None = None
    still: bool = False


@dataclass(frozen=True)
class Data:
    """A source of pictures.

    classes : names of the classes, where there are classes: they are told apart by caption
    prompt : what a class name is put into; "" tells that captions are searched instead
    config : a model that suits, for training from nothing
    defaults : settings that suit, see `siglip_ref.training.settings`
    items : of your own pictures: what a training must find again when it goes on
    notes : what was left out
    """

    name: str
    train: Captioned
    test: Captioned
    config: Config
    classes: Sequence[str] = ()
    prompt: str = ""
    defaults: dict[str, float] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of all items, in their order."""
        return hashlib.sha256(repr(self.items).encode("utf-8", "surrogateescape")).hexdigest()
