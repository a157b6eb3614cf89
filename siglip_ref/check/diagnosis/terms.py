"""The loss as a sum of terms that can be missing, or counted twice: blocks of ranks, positives and negatives apart."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from siglip_ref.check.engine.expected.convention import Convention
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.seen import Seen, distance
from siglip_ref.ops.elementary import Array, sigmoid, softplus

Key = tuple[int, int, bool]  # rank of the images, rank of the texts, positives or negatives
Weights = Mapping[Key, float]

_VISIBLE = 50.0  # a term that is not so many times what is allowed cannot be weighed
_NEAR = 1e-3  # a weight is called by a simple number that is so near


@dataclass(frozen=True)
class Term:
    """One block's positives or negatives. tensors: its part of each tensor, in that tensor's shape, divided by B;
    against_zeros: the same where the texts are zeros, as in a receive buffer that was never filled."""

    key: Key
    tensors: dict[str, Array]
    against_zeros: dict[str, Array]


def loss_terms(probe: Probe, convention: Convention, sizes: Sequence[int]) -> list[Term]:
    """All terms; they sum up to the loss and its gradients.

    Parameters
    ----------
    sizes : pairs of each rank; for one process any one number
    """
    scale = probe.scale if convention.linear else np.exp(probe.log_scale)
    (x, back_x), (y, back_y) = convention.unit(probe.image_embed), convention.unit(probe.text_embed)
    pairs = len(x)
    similarity = x @ y.T
    logits = scale * similarity + probe.bias
    match = np.eye(pairs, dtype=bool)
    losses = softplus(np.where(match, -logits, logits)) / pairs
    slopes = np.where(match, -sigmoid(-logits), sigmoid(logits)) / pairs
    rank_of = np.repeat(np.arange(len(sizes)), sizes) if len(sizes) > 1 else np.zeros(pairs, int)
    of_scale = 1.0 if convention.linear else scale
    terms = []
    for images in range(len(sizes)):
        for texts in range(len(sizes)):
            block = (rank_of[:, None] == images) & (rank_of == texts)
            for positive in (True, False) if images == texts else (False,):
                mask = block & (match == positive)
                slope = np.where(mask, slopes, 0)
                tensors = {
                    "loss": np.where(mask, losses, 0).sum(),
                    "image_embed": back_x(scale * (slope @ y)),
                    "text_embed": back_y(scale * (slope.T @ x)),
                    convention.scale_name: of_scale * (slope * similarity).sum(),
                    "bias": slope.sum(),
                }
                met = mask / pairs * sigmoid(np.array(probe.bias))  # slopes, where texts are zeros
                zeros = {
                    "loss": mask.sum() / pairs * softplus(np.array(probe.bias)),
                    "text_embed": back_y(scale * (met.T @ x)),
                    "bias": met.sum(),
                }
                terms.append(Term((images, texts, positive), tensors, zeros))
    return terms


def weights_of(one: Seen, terms: Sequence[Term]) -> Weights | None:
    """How often each term counts in one embedding's gradient: least squares; None where that does not explain it."""
    got = np.asarray(one.got, np.float64)
    allowed = np.broadcast_to(one.allowed, got.shape)
    columns = [(term.tensors[one.name] / allowed).ravel() for term in terms]
    if got.shape != terms[0].tensors[one.name].shape or not np.isfinite(got).all():
        return None
    if min(np.abs(column).max() for column in columns) < _VISIBLE:
        return None
    matrix = np.stack(columns, -1)
    solution, _, rank, _ = np.linalg.lstsq(matrix, (got / allowed).ravel(), rcond=1e-9)
    if rank < len(terms):
        return None
    weights = {term.key: simple(float(w)) for term, w in zip(terms, solution, strict=True)}
    total = sum(weights[term.key] * term.tensors[one.name] for term in terms)
    return weights if distance(one, np.asarray(total)) <= 2 else None


def simple(weight: float) -> float:
    """A whole number, or one over one, if the weight is nearly that."""
    nearest = round(weight)
    if abs(weight - nearest) < _NEAR:
        return float(nearest)
    inverse = round(1 / weight)
    return 1 / inverse if inverse and abs(weight * inverse - 1) < _NEAR else weight


class Group(NamedTuple):
    """Terms that have a name together. hop: which, where they are those of one hop; place: whole blocks, of which
    ranks."""

    name: str
    hop: int = 0
    place: Literal["", "remote", "own"] = ""


Odd = tuple[tuple[float, tuple[Group, ...]], ...]  # by weight, the groups of terms that count so often


def odd_groups(weights: Weights, world: int) -> Odd:
    """Which terms do not count once, in groups, the most general first."""
    odd = {key: weight for key, weight in weights.items() if weight != 1}
    found: dict[float, list[Group]] = {}
    for group, members in _groups(weights, world):
        left = {odd[key] for key in members if key in odd}
        if len(left) == 1 and all(key in odd for key in members):
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

    >>> describe({(0, 0, True): 1, (0, 0, False): 0}, 1)
    'negatives missing'
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
    if world == 1:
        yield Group("positives"), [k for k in weights if k[2]]
        yield Group("negatives"), [k for k in weights if not k[2]]
        return
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
