"""Where in a file a SigLIP is: whole or one tower, under any prefix, however deep, and between the names of wrappers.

torch.compile, DataParallel, FSDP, Lightning and many others put a word of their own before, or into, every name. What
remains without these words is compared with the tables of `huggingface`, `open_clip` and `big_vision`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from siglip_ref.process.data import read_toml

Format = Literal["huggingface", "open_clip", "big_vision"]
Sides = tuple[str, ...]
BOTH: Sides = ("image", "text")

# What wrappers call the model that they hold, anywhere in a name.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
OPTIMISERS = ("opt", "optim", "optimizer", "opt_state", "optimizer_states")  # their moments have the model's names
BUFFERS = ("position_ids",)  # not parameters; early transformers versions stored them


def about(format_: str) -> dict[str, Any]:
    """What FORMAT.toml says of names: how a tower's begin, marks by which they are known, and all of them."""
    return read_toml(__file__, format_)


BEGIN: dict[Format, dict[str, str]] = {format_: about(format_)["begin"] for format_ in get_args(Format)}
MARKS: dict[Format, dict[str, list[str]]] = {format_: about(format_)["marks"] for format_ in BEGIN}
ALONE: dict[Format, dict[str, str]] = {format_: about(format_)["alone"] for format_ in BEGIN}


@dataclass(frozen=True)
class Found:
    """A SigLIP, or a tower of one, among the names of a file.

    prefix : what stands before every name; names : name as the format's table has it -> name in the file
    """

    format: Format
    sides: Sides
    prefix: str
    names: dict[str, str]

    def __str__(self) -> str:
        what = "whole model" if self.sides == BOTH else f"{self.sides[0]} tower"
        return f"{self.prefix!r} ({what}, {self.format}, {len(self.names)} tensors)"


def without_wrappers(name: str) -> str:
    """A name without the words of wrappers.

    >>> without_wrappers("module._orig_mod.vision_model.encoder.layers.0._orig_mod.mlp.fc1.weight")
    'vision_model.encoder.layers.0.mlp.fc1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers' words -> names in the file. A wrapper holds one thing: nothing else stands beside it.

    >>> unwrapped(["module.a.x", "module.a.module.y"])
    {'a.x': 'module.a.x', 'a.module.y': 'module.a.module.y'}
    """
    split = {name: name.split(".") for name in names}
    inside: dict[str, set[str]] = {}
    for parts in split.values():
        for place, part in enumerate(parts):
            inside.setdefault(".".join(parts[:place]), set()).add(part)
    plain = {}
    for name, parts in split.items():
        kept = [
            part for place, part in enumerate(parts) if part not in WRAPPERS or len(inside[".".join(parts[:place])]) > 1
        ]
        plain[".".join(kept)] = name
    return plain


def find(names: Mapping[str, str]) -> list[Found]:
    """Every SigLIP, whole or tower, that these names may hold; names -> names in the file. Shapes are not looked at."""
    names = {name: old for name, old in names.items() if not name.endswith(BUFFERS)}
    prefixes = {place for format_ in BEGIN for place in _prefixes(names, format_)}
    found = [_region(names, *place, prefixes) for place in sorted(prefixes)]
    if not found:
        found = [one for format_ in ALONE for side in BOTH for one in _alone(names, format_, side)]
    moments = [one for one in found if not set(re.split("[./]", one.prefix)) & set(OPTIMISERS)]
    return moments or found


Place = tuple[Format, str, Sides]


def _prefixes(names: Mapping[str, str], format_: Format) -> list[Place]:
    """Where a format's names begin, and which towers begin there."""
    towers: dict[str, set[str]] = {}
    for side, begin in BEGIN[format_].items():
        rest = "|".join(map(re.escape, MARKS[format_][side]))
        mark = re.compile(rf"(?:^|(?<=[./])){re.escape(begin)}(?:{rest})")
        for name in names:
            if at := mark.search(name):
                towers.setdefault(name[: at.start()], set()).add(side)
    return [(format_, prefix, tuple(side for side in BOTH if side in found)) for prefix, found in towers.items()]


def _region(names: Mapping[str, str], format_: Format, prefix: str, sides: Sides, places: set[Place]) -> Found:
    """All names of a whole model under its prefix, but for those of other models in it; of one tower, the tower's."""
    begin = prefix if sides == BOTH else prefix + BEGIN[format_][sides[0]]
    deeper = tuple(other for _, other, _ in places if other != prefix and other.startswith(begin))
    inside = {
        name[len(prefix) :]: old
        for name, old in names.items()
        if name.startswith(begin) and not (deeper and name.startswith(deeper))
    }
    return Found(format_, sides, prefix, inside)


def _alone(names: Mapping[str, str], format_: Format, side: str) -> list[Found]:
    """Towers whose names have lost their beginning."""
    anchor, begin = ALONE[format_][side], BEGIN[format_][side]
    prefixes = [name[: -len(anchor)] for name in names if name.endswith(anchor)]
    return [
        Found(
            format_,
            (side,),
            prefix,
            {begin + n[len(prefix) :]: old for n, old in names.items() if n.startswith(prefix)},
        )
        for prefix in prefixes
        if not prefix or prefix[-1] in "./"
    ]
