"""The catalogue of mistakes: each one a small change of the reference that can be run.

One catalogue, four uses: the power table of the golden vectors, diagnosis, `siglip-ref explain` and `demo`, and the
"break it" switch of the teaching page. To add one, add an entry to the TOML file it belongs to; tests do the rest.
"""

from dataclasses import dataclass
from typing import Any, Literal

from siglip_ref.errors import UsageError, near
from siglip_ref.mistakes.change import Edit as Edit
from siglip_ref.mistakes.change import Reference as Reference
from siglip_ref.mistakes.change import reference as reference
from siglip_ref.process.data import read_toml

# one vector: its numbers alone show it; several steps: only optimiser steps do; across ranks: needs two or more ranks;
# recipe: the vectors of SigLIP 2's recipe show it; not numeric: no number of the reference changes; equivalent: changes
# nothing in exact arithmetic
# softmax: made in CLIP's loss, which no vector is of
Kind = Literal["one vector", "several steps", "across ranks", "recipe", "softmax", "not numeric", "equivalent"]

# The check that is there to see it: check_loss, check_model, check_ranks (ranks), check_step ...; pixels:
# only the gradient of the images shows it; recipe: check_dump does; equivalent: nothing does; "": none of these.
Home = Literal["loss", "model", "pixels", "ranks", "step", "preprocess", "tokenize", "recipe", "softmax",
               "equivalent", ""]  # fmt: skip
_HOME: dict[Kind, Home] = {
    "several steps": "step", "across ranks": "ranks", "recipe": "recipe", "softmax": "softmax",
    "equivalent": "equivalent",
}  # fmt: skip
_LOSS = {"ops/sigmoid_loss.py", "ops/pair_block.py", "ops/normalize.py"}

ONE_SIDE = "one-side-not-normalised"  # made where towers meet; a loss that normalises does so itself, here

FILES = ("loss", "contract", "ranks", "towers", "backward", "training", "equivalent", "elsewhere", "siglip2", "softmax")


@dataclass(frozen=True)
class Mistake:
    """One entry. id: never changes; text: what is wrong; shows: how its numbers deviate, or why they do not; repair:
    what to do; seen: in which repository and issue; edits: the mistake, made in the reference; home: the check that is
    there to see it; declare: the end of repair, what a check of a loss is to be told if it is meant."""

    id: str
    kind: Kind
    text: str
    shows: str
    repair: str
    seen: str
    edits: tuple[Edit, ...] = ()
    home: Home = ""
    declare: str = ""

    drops, rank = False, (0, 0)  # as of an edit of the grammar: neither is known of an entry

    @property
    def place(self) -> str:
        """Forms of one entry do not go together."""
        return self.id

    @property
    def change(self) -> str:
        """The repair where no loss is checked that could be declared otherwise."""
        return self.repair.removesuffix(self.declare)


def entries(name: str) -> list[Mistake]:
    """All of one file, in its order."""
    content = read_toml(__file__, name)["mistake"]
    return [_entry(value, **fields) for fields in content for value in fields.pop("values", [""])]


def _entry(
    value: str, text: str, repair: str, edits: tuple[dict[str, str], ...] = (), home: Home | None = None,
    declare: str = "", **fields: Any,
) -> Mistake:  # fmt: skip
    """value: what an entry of several forms says where it says VALUE."""
    made = tuple(Edit(edit["file"], edit["old"], edit["new"].replace("VALUE", value)) for edit in edits)
    home = _home(fields["kind"], made) if home is None else home
    return Mistake(**fields, text=text.replace("VALUE", value), repair=repair + declare, edits=made, home=home,
                   declare=declare)  # fmt: skip


def _home(kind: Kind, edits: tuple[Edit, ...]) -> Home:
    """Of an entry that does not say: by its kind, and by the files in which it is made."""
    if kind != "one vector":
        return _HOME.get(kind, "")
    files = {edit.file for edit in edits}
    if "model/procedures.py" in files:
        return "step"
    return "loss" if files <= _LOSS else "model"


WORDS: dict[str, str] = read_toml(__file__, "messages")  # of ids that reports print and that are no mistakes
CATALOGUE: dict[str, Mistake] = {mistake.id: mistake for name in FILES for mistake in entries(name)}


def recognised() -> list[Mistake]:
    """The mistakes that some check is there to see: each PASS of it says whether it would have."""
    return [mistake for mistake in CATALOGUE.values() if mistake.home not in ("", "equivalent")]


def census() -> str:
    """How many entries there are, and of what kind: the same wherever they are counted."""
    equal, named = sum(m.home == "equivalent" for m in CATALOGUE.values()), len(recognised())
    return (
        f"{len(CATALOGUE)} entries: {named} mistakes that a check recognises by their numbers, "
        f"{len(CATALOGUE) - named - equal} others (of calls, hangs, readouts), {equal} changes that are harmless"
    )


def find(name: str) -> Mistake:
    """The entry of this id.

    >>> find("label-sign").kind
    'one vector'
    """
    if name not in CATALOGUE:
        alike = near(name, [*CATALOGUE, *WORDS])
        raise UsageError(
            expected=f"the id of one of the catalogue's {len(CATALOGUE)} entries",
            got=repr(name),
            cause="",
            repair=f"siglip-ref explain {alike[0]}" if alike else "siglip-ref explain, without an id, lists them all",
            near=alike,
        )
    return CATALOGUE[name]


def executable(*kinds: Kind) -> list[Mistake]:
    """Entries of these kinds (none named: all) that can be run."""
    return [m for m in CATALOGUE.values() if m.edits and (not kinds or m.kind in kinds)]


def suspects(ranks: bool) -> list[Mistake]:
    """All mistakes that a loss can show, on one rank or on several; also in the form that autograd gives them."""
    forms = [*executable(), *entries("differentiated")]
    between = [mistake for mistake in forms if mistake.kind == "across ranks"] if ranks else []
    return between + [mistake for mistake in forms if mistake.kind == "one vector" and in_the_loss(mistake)]


def in_the_loss(mistake: Mistake) -> bool:
    """Whether a mistake is made where a loss alone would show it."""
    return mistake.home == "loss"
