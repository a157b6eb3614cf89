"""Text as people type it: decoded, freed of what nobody sees, and shown so that every character is seen."""

import codecs
import re
from pathlib import Path

from siglip_ref.errors import UsageError

# byte order mark, zero-width space and joiners, word joiner: editors and web forms leave them, and nobody sees them
UNSEEN = "\ufeff\u200b\u200c\u200d\u2060"
MARKS = {  # in this order: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: ("UTF-32, by its first four bytes", "another encoding"),
    codecs.BOM_UTF32_BE: ("UTF-32, by its first four bytes", "another encoding"),
    codecs.BOM_UTF16_LE: ("UTF-16, by its first two bytes", 'what Windows calls "Unicode" is UTF-16'),
    codecs.BOM_UTF16_BE: ("UTF-16, by its first two bytes", 'what Windows calls "Unicode" is UTF-16'),
}


def tidy(text: str) -> str:
    """Without blanks and unseen characters at both ends.

    >>> tidy("\\ufeff cat\\u200b ")
    'cat'
    """
    while (shorter := text.strip().strip(UNSEEN)) != text:
        text = shorter
    return text


def visible(text: str) -> str:
    """For messages: what cannot be seen or printed is escaped.

    >>> visible("ca\\u200bt\\n")
    'ca\\\\u200bt\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark; without zero bytes, which no text has."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise _not_read(path, error) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got, cause = f"{error.reason} at byte {error.start}", "another encoding, or not a text file"
    else:
        if "\0" not in text:
            return text
        zero = content.index(0)
        got, cause = f"a zero byte at byte {zero}", "not a text file"
        if content.count(0) * 3 >= len(content):
            got, cause = got + ", and many more", "UTF-16 or UTF-32 without a mark that says so, or not a text file"
    got, cause = next((words for mark, words in MARKS.items() if content.startswith(mark)), (got, cause))
    raise UsageError(f"a UTF-8 text file at {visible(str(path))}", got, cause, "save it as UTF-8")


def _not_read(path: Path, error: OSError | ValueError) -> UsageError:
    """Why the system gives no file, in its own words and in ours."""
    got = (error.strerror if isinstance(error, OSError) else None) or str(error)
    cause = "a name that no file can have"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        cause = "a spelling mistake"
    elif isinstance(error, PermissionError):
        cause = "its permissions"
    elif isinstance(error, IsADirectoryError):
        cause = "a folder of this name, or no name" if str(path) == "." else "a folder of this name"
    return UsageError(f"a UTF-8 text file at {visible(str(path))[:300]}", got, cause, "check the path")


def read_lines(path: Path) -> list[str]:
    """The lines that hold something, tidied."""
    return read_rows(path)[0]


def read_rows(path: Path) -> tuple[list[str], int]:
    """The lines that hold something, tidied; and how many before the last of them hold nothing."""
    lines = [tidy(line) for line in re.split(r"\r\n|\r|\n", read_text(path))]
    full = [number for number, line in enumerate(lines) if line]
    return [lines[number] for number in full], full[-1] + 1 - len(full) if full else 0


def require_some(lines: list[str], path: Path, what: str) -> list[str]:
    """The lines of a file, if there are any."""
    if not lines:
        raise UsageError(
            expected=f"one {what} a line in {visible(str(path))}",
            got="no line that holds anything",
            cause="an empty file, or blank lines alone",
            repair=f"write each {what} into a line of its own",
        )
    return lines
