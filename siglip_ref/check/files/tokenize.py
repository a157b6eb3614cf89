"""Does a function tokenise as a SigLIP wants it? Length first: the last position is pooled, so padding decides all."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.check.call.answers import in_a_line
from siglip_ref.check.call.target import called_by
from siglip_ref.errors import UsageError
from siglip_ref.process.isolated import as_it_was
from siglip_ref.report.compare import Row, compare
from siglip_ref.report.data import Finding, Report
from siglip_ref.use.text_conventions import TEXT_CONVENTIONS, TextConvention, named_convention
from siglip_ref.use.tokenizer import Tokenizer, json_tokenizer, sentencepiece_tokenizer

Ids = list[list[int]]
TEXTS = (
    "a photo of a cat",
    "a photo of a dog and two birds",
    "A PHOTO of a Cat",
    "this is a photo of a cat.",
    "one, two; three!",
    "under_score and dash-es",
    "ÜBER Straße, ЖЗИ",
    "  two   spaces  ",
    "猫の写真",
    "",
    "word " * 100,
)
SHOWN = 40  # letters of a text that a report prints
# Two texts that some conventions make equal: what it is about, and whose cleaning makes them so. Beyond ASCII both may
# be unknown letters to a vocabulary, and so equal without any cleaning.
PAIRS = (
    ("lower case", "A Photo Of A CAT", "a photo of a cat", ("ascii lower", "lower", "canonical", "open_clip")),
    ("lower case beyond ASCII", "ÄÖ ЖЗ", "äö жз", ("lower", "canonical", "open_clip")),
    ("punctuation", "a photo, of a cat!", "a photo of a cat", ("canonical", "open_clip")),
    ("underscore as a space", "two_words", "two words", ("open_clip",)),
)


def check_tokenize(
    fn: Callable[[list[str]], Any] | str,
    convention: str | TextConvention = "huggingface",
    *,
    length: int = 64,
    tokenizer: str | Path | None = None,
) -> Report:
    """Judge a tokenising function, and name what it does instead.

    Parameters
    ----------
    fn : takes a list of texts; gives their ids as lists, an array, a tensor, or a dict with "input_ids". A
        string names it: "module:name", "file.py:name"
    convention : a name in `siglip_ref.use.text_conventions.TEXT_CONVENTIONS`; "huggingface" (SigLIP), "huggingface-2"
        (SigLIP 2)
    length : of every row: 64, for So400m/14-224 of SigLIP 16
    tokenizer : the SentencePiece file or tokenizer.json; with it every id is compared too

    Examples
    --------
    >>> from siglip_ref.use.tokenizer import byte_tokenizer
    >>> check_tokenize(byte_tokenizer(64), byte_tokenizer(64).convention).verdict
    'PASS'
    """
    how, fn = named_convention(convention), called_by(fn)
    if length < 8:
        raise UsageError("length at least 8", str(length), "no SigLIP is that short", "length=64")
    found = _ids(fn, TEXTS)
    report = Report(f"tokenising, as {how.name}, {length} ids", "PASS", [])
    report.conventions = {"clean": how.clean, "end": str(how.eos), "padding": str(how.pad), "length": str(length)}
    findings = [*_shape(found, _ids(fn, TEXTS[:1])[0], how, length), *_cleaning(fn, how)]
    report.rows = [row for row, _ in findings]
    report.findings = [finding for _, finding in findings if finding]
    if tokenizer is None:
        report.not_checked.append("the ids themselves: give tokenizer=FILE, the model's SentencePiece file")
    else:
        _compare_ids(report, found, how, length, Path(tokenizer))
    if not all(row.right for row in report.rows) and report.verdict == "PASS":
        report.verdict = "FAIL"
    return report


Judged = tuple[Row, Finding | None]


def _judge(name: str, wrong: Sequence[str], id_: str, evidence: str, repair: str) -> Judged:
    """A row of one yes-or-no question; `wrong` holds the texts for which the answer is no."""
    row = compare(name, np.array([float(len(wrong))]), np.zeros(1), 0.0, kind="value")
    if not wrong:
        return row, None
    return row, Finding(id_, "ids", "", f"{evidence}: {_short(wrong[0])}", repair)


def _short(text: str) -> str:
    """A text as a report prints it: a long one by its beginning, and how many words it has."""
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}... ({len(text.split())} words)"


def _shape(found: Ids, alone: list[int], how: TextConvention, length: int) -> Iterator[Judged]:
    """Length, also of a short text alone; end, padding, nothing in front."""
    named = [*zip(TEXTS, found, strict=True), (TEXTS[0], alone)]
    wrong = [text for text, ids in named[::-1] if len(ids) != length]
    lengths = sorted({len(ids) for _, ids in named})
    repair = f'padding="max_length", max_length={length}, truncation=True'
    yield _judge("every row has the full length", wrong, "text-not-padded-to-64", f"rows of {lengths} ids", repair)
    left = [TEXTS[0]] if len(alone) > 3 and alone[:3] == [how.pad] * 3 else []
    yield _judge(
        "padded on the right", left, "text-not-padded-to-64", "padding stands in front", 'padding_side="right"'
    )
    if left:
        return
    no_end = [text for text, ids in named if how.eos not in ids]
    yield _judge("every text has its end", no_end, "pad-eos-id", f"no {how.eos} in", f"append the end, id {how.eos}")
    after = [text for text, ids in named if how.eos in ids and set(ids[ids.index(how.eos) + 1 :]) - {how.pad}]
    yield _judge(
        "padding after the end", after, "pad-eos-id", f"not all {how.pad} after the end", f"pad with {how.pad}"
    )
    begun = [text for text, ids in named if not text and ids[:1] != [how.eos]]
    yield _judge("nothing in front", begun, "pad-eos-id", "an id before the end of", "add_bos_token=False")


def _cleaning(fn: Callable[[list[str]], Any], how: TextConvention) -> Iterator[Judged]:
    """Texts that this convention, and only some others, make equal."""
    for name, one, two, by in PAIRS:
        first, second = _ids(fn, (one, two))
        equal, wanted = first == second, how.clean in by
        if equal and "ASCII" in name:
            continue
        words = {True: "the same ids", False: "other ids"}
        evidence = f"{words[equal]} as {two!r}, where {how.name} has {words[wanted]}"
        repair = f"clean texts as {how.name} does: siglip_ref.use.text_conventions.CLEAN[{how.clean!r}]"
        yield _judge(name, [] if equal == wanted else [one], "text-not-lowercased-canonicalised", evidence, repair)


def _compare_ids(report: Report, found: Ids, how: TextConvention, length: int, file: Path) -> None:
    maker = json_tokenizer if file.suffix == ".json" else sentencepiece_tokenizer

    def wrong(convention: TextConvention) -> list[str]:
        reference: Tokenizer = maker(file, length, convention)
        return [text for text, ids, own in zip(TEXTS, found, reference(TEXTS).tolist(), strict=True) if ids != own]

    row, finding = _judge("every id", wrong(how), "unknown", "other ids", "another file, or another cleaning")
    report.rows.append(row)
    if finding is None:
        return
    other = next((c.name for c in TEXT_CONVENTIONS.values() if c != how and not wrong(c)), None)
    if other:
        report.verdict = "OTHER CONVENTION"
        repair = f'sr.check_tokenize(fn, "{other}"), if this is what the weights want'
        report.findings = [Finding("convention", "ids", "", f"every id as {other} has it", repair)]
    elif not report.findings:
        report.findings.append(finding)


def _ids(fn: Callable[[list[str]], Any], texts: Sequence[str]) -> Ids:
    """What fn gives for these texts, as lists of whole numbers."""
    with as_it_was():
        try:
            rows = _rows(fn(list(texts)))
            told = f"{len(rows)} rows of ids"
        except Exception as error:  # whatever a user's function raises, or gives that are no ids
            rows, told = None, in_a_line(error)
        if rows is not None and len(rows) == len(texts):
            return rows
        alone = _takes_one(fn, texts[0])
    raise UsageError(
        expected=f"fn(texts) that takes a list of texts and gives {len(texts)} rows of ids, whole numbers",
        got=told,
        cause="it takes one text" if alone else "",
        repair="lambda texts: [fn(text) for text in texts]" if alone else "lambda texts: tokenizer(texts).input_ids",
    )


def _rows(out: Any) -> Ids:
    if hasattr(out, "keys"):
        out = out["input_ids"]
    rows = out.tolist() if hasattr(out, "tolist") else out
    ids = [[int(number) for number in row] for row in rows]
    if any(number != id for row, own in zip(rows, ids, strict=True) for number, id in zip(row, own, strict=True)):
        raise TypeError("ids that are no whole numbers")
    return ids


def _takes_one(fn: Callable[..., Any], text: str) -> bool:
    """Whether fn gives ids, or a row of them, for a text by itself."""
    try:
        out = fn(text)
        out = out["input_ids"] if hasattr(out, "keys") else out
        ids = np.asarray(out.tolist() if hasattr(out, "tolist") else out)
        return ids.dtype.kind in "iu" and ids.size > 0
    except Exception:
        return False
