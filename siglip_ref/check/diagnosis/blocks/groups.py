"""Terms of a loss over ranks that are missing, or counted twice, in words: blocks, positives and negatives apart."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

Key = tuple[int, int, bool]  # rank of the images, rank of the texts, positives or negatives
Weights = Mapping[Key, float]

_NEAR = 1e-3  # a weight is called by a simple number that is so near


def simple(weight: float) -> float:
    """A whole number, or one over one, if the weight is nearly that."""
    nearest = round(weight)
    if abs(weight - nearest) < _NEAR:
        return float(nearest)
    inverse = round(1 / weight)
    return 1 / inverse if inverse and abs(weight * inverse - 1) < _NEAR else weight


class Group(NamedTuple):
    """Terms that have a name together. hop: which, where they are those of one hop; place: whole blocks, of which
    ranks; only: a name where nothing else counts so often."""

    name: str
    hop: int = 0
    place: Literal["", "remote", "own"] = ""
    only: bool = False


Odd = tuple[tuple[float, tuple[Group, ...]], ...]  # by weight, the groups of terms that count so often


def odd_groups(weights: Weights, world: int) -> Odd:
    """Which terms do not count once, in groups, the most general first."""
    odd = {key: weight for key, weight in weights.items() if weight != 1}
    found: dict[float, list[Group]] = {}
    for group, members in _groups(weights, world):
        left = {odd[key] for key in members if key in odd}
        more = group.only and any(weight in left for key, weight in odd.items() if key not in members)
        if len(left) == 1 and all(key in odd for key in members) and not more:
            found.setdefault(left.pop(), []).append(group)
            odd = {key: weight for key, weight in odd.items() if key not in members}
    return tuple((weight, tuple(groups)) for weight, groups in found.items())


class Counted(NamedTuple):
    """Terms that count otherwise than once: which, at each number of ranks."""

    by_world: tuple[tuple[int, Odd], ...]


def counted(by_sizes: Mapping[tuple[int, ...], Odd]) -> Counted:
    """A number of ranks may be tried with several numbers of pairs."""
    return Counted(tuple(sorted({(len(sizes), odd) for sizes, odd in by_sizes.items()})))


def describe(weights: Weights, world: int) -> str:
    """The same in words.

    >>> describe({(0, 0, True): 1, (0, 1, False): 0, (1, 0, False): 0, (1, 1, True): 1}, 2)
    'all remote blocks missing'
    """
    return "; ".join(f"{listed(groups)} {_times(weight)}" for weight, groups in odd_groups(weights, world))


def at_each_number_of_ranks(by_sizes: Mapping[tuple[int, ...], str]) -> str:
    """The same at every number of ranks, or what it is at each."""
    if len(set(by_sizes.values())) == 1:
        return next(iter(by_sizes.values()))
    said = (f"{text or 'nothing'} (W={len(sizes)})" for sizes, text in by_sizes.items())
    return " / ".join(dict.fromkeys(said))  # a number of ranks may be tried with several numbers of pairs


def _groups(weights: Weights, world: int) -> Iterator[tuple[Group, list[Key]]]:
    """Sets of terms that have a name, the largest first; the last are single blocks."""
    kinds = {"": (True, False), "positives": (True,), "negatives": (False,)}
    for kind, signs in kinds.items():
        of = f"{kind} of " if kind else ""
        keys = [key for key in weights if key[2] in signs]
        yield Group(f"{of}all blocks"), keys
        if kind != "positives":
            yield (
                Group(f"{of}all remote blocks", place="" if kind else "remote"),
                [key for key in keys if key[0] != key[1]],
            )
        yield Group(f"{of}the own block", place="" if kind else "own"), [key for key in keys if key[0] == key[1]]
        every = len({key[0] for key in keys}) == world  # of a table of hops, the first row stands for all ranks
        between = [key for key in keys if every and key[0] != key[1] and kind != "positives"]
        for size in range(2, world - 1 if world > 3 else world):
            yield (
                Group(f"{of}the texts of other groups of {size} ranks", only=True),
                [key for key in between if key[0] // size != key[1] // size],
            )
        if world > 2:
            yield Group(f"{of}the texts of higher ranks", only=True), [key for key in between if key[1] > key[0]]
            yield Group(f"{of}the texts of lower ranks", only=True), [key for key in between if key[1] < key[0]]
            mirrored = [key for key in between if (key[0] + key[1]) % world == 0]
            yield Group(f"{of}the texts of rank -r, modulo W, where that is another rank", only=True), mirrored
        for hop in range(1, world):
            # not "hop 1": in which order a ring meets texts is its own choice
            name = f"the texts of rank r {'- 1' if 2 < world == hop + 1 else f'+ {hop}'}"
            members = [key for key in keys if (key[1] - key[0]) % world == hop and kind != "positives"]
            yield Group(f"{of}{name}", 0 if kind else hop), members
        for rank in range(world):
            yield Group(f"{of}the images of rank {rank}"), [key for key in keys if key[0] == rank]
            yield Group(f"{of}the texts of rank {rank}"), [key for key in keys if key[1] == rank]
        for images, texts in dict.fromkeys(key[:2] for key in keys):
            block = f"{of}the block of rank {images}'s images and rank {texts}'s texts"
            yield Group(block), [key for key in keys if key[:2] == (images, texts)]


def _times(weight: float) -> str:
    if weight == 0:
        return "missing"
    if weight == round(weight):
        return f"counted {weight:.0f} times" if weight > 0 else f"counted {weight:.0f} times (sign!)"
    inverse = f" (1/{1 / weight:.0f})" if abs(1 / weight - round(1 / weight)) < 1e-9 else ""
    return f"counted {weight:.4g}{inverse} times"


def listed(groups: Sequence[Group]) -> str:
    """The first of them by name."""
    more = f" and {len(groups) - 4} more" if len(groups) > 4 else ""
    return ", ".join(group.name for group in groups[:4]) + more
