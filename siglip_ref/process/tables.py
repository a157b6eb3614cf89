"""Tables as CSV: ours, whose every cell comes back as it was, and those that people write."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from siglip_ref.errors import UsageError
from siglip_ref.process.typed import read_text, tidy, visible


def as_csv(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> bytes:
    r"""A CSV in UTF-8; bytes of a file's name that are no UTF-8 stay as they are.

    >>> as_csv(["path"], [['a "b", c'], ["d\re"]])
    b'path\n"a ""b"", c"\n"d\re"\n'
    """
    lines = (",".join(map(_cell, row)) + "\n" for row in (columns, *rows))
    return "".join(lines).encode("utf-8", "surrogateescape")


def _cell(value: Any) -> str:
    """Quoted where it must be: Python's writer leaves a carriage return bare, and its reader takes it for an end."""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\r\n') else text


def read_csv(file: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a CSV that `as_csv` made; ValueError where it is another."""
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        rows = csv.reader(lines, strict=True)
        try:
            if next(rows, None) != list(columns):
                raise ValueError(f"{file.name} does not begin with {','.join(columns)}")
            for row in rows:
                if len(row) != len(columns):
                    raise ValueError(f"{file.name}: a row of {len(row)} columns, line {rows.line_num}")
                yield row
        except csv.Error as error:
            raise ValueError(f"{file.name}: {error}") from error


def read_typed(file: Path, columns: tuple[str, str]) -> tuple[list[tuple[str, str]], int]:
    """Two columns of a CSV as people write it, where both hold something; how many rows there are in all.

    Its first line names them; semicolons or tabs may stand where the comma is the decimal point.
    """
    text = read_text(file)
    wanted = f"a CSV in {file}, its first line naming the columns {' and '.join(columns)}"
    fits = (sign for sign in ",;\t" if {*columns} <= {*_head(_rows(text, sign, strict=False))})
    try:
        rows = _rows(text, next(fits, ","), strict=True)
    except csv.Error as error:
        cause = "a quotation mark that is never closed, or not a CSV"
        repair = 'close it; within quotation marks write "" for one'
        raise UsageError(wanted, str(error), cause, repair) from error
    head = _head(rows)
    wrong = [f"the column {name} twice" for name in columns if head.count(name) > 1]
    wrong += [f"no column {name}" for name in columns if name not in head]
    if wrong:
        got = f"the first line {visible(', '.join(rows[0]))[:80]}" if rows[0] else "an empty file"
        raise UsageError(wanted, got, " and ".join(wrong), f"make the first line: {','.join(columns)}")
    one, other = map(head.index, columns)
    cells = [(row[one], row[other]) for row in rows[1:] if len(row) > max(one, other)]
    return [(a, b) for a, b in cells if a and b], len(rows) - 1


def _head(rows: list[list[str]]) -> list[str]:
    return [cell.lower() for cell in rows[0]]


def _rows(text: str, separator: str, strict: bool) -> list[list[str]]:
    """Those that hold something, or one that is empty; strict: csv.Error of a quotation mark that is not closed."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict)
    try:
        return [row for row in ([tidy(cell) for cell in row] for row in reader) if any(row)] or [[]]
    except csv.Error as error:
        if not strict:  # not the separator that is looked for, perhaps
            return [[]]
        raise csv.Error(f"{error}, by line {reader.line_num}") from error
