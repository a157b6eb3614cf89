"""Every id that a report can print is known to `siglip-ref explain`; what is not there is answered by what is near."""

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import siglip_ref
import siglip_ref as sr
from siglip_ref.cli.main import app
from siglip_ref.errors import near
from siglip_ref.mistakes import CATALOGUE, WORDS, find
from siglip_ref.training.data.sources import open_data

CHECK = Path(siglip_ref.__file__).parent / "check"
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
# Literals in the form of an id that are none: names of packages, files and formats.
NO_IDS = {
    "siglip-ref",
    "utf-8",
    "huggingface-2",
    "open-clip",
    "step-by-step",
    "tiny-naflex",
    "stage-0",
    "error-0",
    "last-but-one",
}


def literals():
    """Every string in the code of the checks that has the form of an id, with its place."""
    for path in sorted(CHECK.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ID.fullmatch(node.value):
                yield node.value, f"{path.relative_to(CHECK)}:{node.lineno}"


def test_every_id_in_the_code_of_the_checks_is_known():
    unknown = {literal: place for literal, place in literals() if literal not in CATALOGUE and literal not in NO_IDS}
    assert not unknown, "an entry in siglip_ref/mistakes/*.toml, or in NO_IDS here if it is no id"
    assert {"no-gradient-arrives", "partial-gradients", "rank-failed", "pad-eos-id"} <= {one for one, _ in literals()}


def test_ids_are_given_by_literals_or_by_the_catalogue():
    """The first argument of a finding is a string, or a name that holds one of the above; never put together."""
    for path in sorted(CHECK.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "Hint", "Clause")
            if called and node.args:
                assert not isinstance(node.args[0], ast.JoinedStr | ast.BinOp), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("word", [*WORDS, "no-gradient-arrives", "partial-gradients", "update-lost-to-rounding"])
def test_explain_explains(word):
    shown = CliRunner().invoke(app, ["explain", word])
    assert shown.exit_code == 0 and word in shown.output
    assert word in CliRunner().invoke(app, ["explain"]).output


def test_what_is_near_has_a_line_of_its_own():
    with pytest.raises(sr.UsageError) as raised:
        find("ring-hop")
    assert "ring-hop-missing" in raised.value.near and not raised.value.cause
    assert raised.value.repair == f"siglip-ref explain {raised.value.near[0]}"
    assert "\nnear:     ring-hop" in str(raised.value) and "cause" not in str(raised.value)
    with pytest.raises(sr.UsageError) as raised:
        find("zzz")
    assert not raised.value.near and "without an id" in raised.value.repair


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: sr.config("B/16-255"), "B/16-256"),
        (lambda: sr.config("tine"), "tiny"),
        (lambda: open_data("digit"), "digits"),
        (lambda: open_data("shape"), "shapes"),
        (lambda: sr.check_loss(lambda a, b, c, d: a, framework="torhc"), "torch"),
    ],
)
def test_names_that_nearly_fit_are_offered(call, wanted):
    with pytest.raises(sr.UsageError) as raised:
        call()
    assert wanted in raised.value.near and f"near:     {raised.value.near[0]}" in str(raised.value)


def test_nothing_is_near_to_nonsense():
    assert near("xyzzy", CATALOGUE) == []
