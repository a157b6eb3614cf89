"""Text as people type it: decoded, freed of what nobody sees, and shown so that every character is seen."""

import codecs
import re
from pathlib import Path

from siglip_ref.errors import UsageError

# byte order mark, zero-width space and joiners, word joiner: editors and web forms leave them, and nobody sees them
UNSEEN = "\ufeff\u200b\u200c\u200d\u2060"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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
    """A text file in UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        got, cause, repair = str(error), "no such file, or no right to read it", "check the path"
    except UnicodeDecodeError as error:
        got, cause = f"{error.reason} at byte {error.start}", "another encoding, or not a text file"
        if content.startswith(UTF_16):
            got, cause = "UTF-16, by its first two bytes", 'what Windows calls "Unicode" is UTF-16'
        repair = "save it as UTF-8"
    raise UsageError(f"a UTF-8 text file at {path}", got, cause, repair)


def read_lines(path: Path) -> list[str]:
    """The lines that hold something, tidied."""
    return [line for line in map(tidy, re.split(r"\r\n|\r|\n", read_text(path))) if line]
