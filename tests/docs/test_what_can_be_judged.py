"""The table of what people hold is whole: no empty cell, a reason in every "no", and what it names exists."""

import importlib
import re
from pathlib import Path

import pytest
import typer

import siglip_ref as sr
from siglip_ref.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "what-can-be-judged.md"
LINES = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
HEAD, _, *ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES]


def test_it_has_the_verbs():
    assert HEAD[1:] == ["load", "run", "embed", "train", "judge"] and len(ROWS) >= 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_no_cell_is_empty_and_every_no_has_its_reason(row):
    assert len(row) == len(HEAD) and all(row)
    for cell in row[1:]:
        assert not re.match("no\\b", cell, re.IGNORECASE) or re.match(r"no: \S.{8,}", cell), cell


def commands():
    """Every command, with those of its groups: "check loss"."""
    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():
        found |= {name} | {f"{name} {inner}" for inner in getattr(command, "commands", {})}
    return found


def test_what_it_names_exists():
    text, known = " ".join(LINES), commands()
    for words in re.findall(r"`siglip-ref ([a-z]+(?: [a-z]+)?)`", text):
        assert words in known, words
    names = re.findall(r"`(sr|siglip_ref\.\w+)\.(\w+)`", text)
    assert len(names) >= 12
    for module, name in names:
        assert hasattr(sr if module == "sr" else importlib.import_module(module), name), name
