"""Tables as CSV whose every cell comes back as it was: with line ends, quotation marks, bytes that are no text."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


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
