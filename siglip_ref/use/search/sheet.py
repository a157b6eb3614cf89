"""A contact sheet: one HTML file with thumbnails in it, which asks for nothing, light or dark as the system is.

Tab, the arrow keys, Home and End go from photo to photo; Enter opens one.
"""

import base64
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from siglip_ref.errors import UsageError
from siglip_ref.process.typed import visible
from siglip_ref.use.pictures import open_image

SIDE = 240  # pixels of a thumbnail's longer side
LARGEST = 2000  # photos of one sheet: 20 MB

_STYLE = "\n" + Path(__file__).with_name("sheet.css").read_text(encoding="utf-8")

_SCRIPT = "\n" + Path(__file__).with_name("sheet.js").read_text(encoding="utf-8")


class Card(NamedTuple):
    """A photo with what is said of it, in lines; share: of a bar, 0 to 1, or None for no bar."""

    file: Path
    name: str
    lines: Sequence[str]
    share: float | None = None


class Section(NamedTuple):
    """Photos under a heading; "" for none."""

    title: str
    cards: Sequence[Card]


def sheet(title: str, lines: Iterable[str], sections: Sequence[Section]) -> Iterator[str]:
    """The page, part by part, so that a large one is never whole in memory.

    lines : sentences under the title
    """
    count = sum(len(section.cards) for section in sections)
    if count > LARGEST:
        raise UsageError(
            expected=f"a sheet of at most {LARGEST:,} photos",
            got=f"{count:,}",
            cause="every thumbnail is inside the file",
            repair=f"--top {LARGEST}, or a higher threshold",
        )
    sum_ = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{sum_}'"
    head = _text(title).replace("/", "/<wbr>")
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n<h1>{head}</h1>\n"
    )
    yield from (f"<p>{_text(line)}</p>\n" for line in lines)
    yield "<p>Go from photo to photo with <kbd>Tab</kbd> or the arrow keys; <kbd>Enter</kbd> opens one.</p>\n"
    for section in sections:
        yield f"<section><h2>{_text(section.title)}</h2>" if section.title else "<section>"
        yield "<ol>\n"
        yield from map(_card, section.cards)
        yield "</ol></section>\n"
    yield f"</main><script>{_SCRIPT}</script></body></html>\n"


def _card(card: Card) -> str:
    folder, _, name = card.name.rpartition("/")
    below = f"<small>{_text(folder)}</small>" if folder else ""
    bar, value = "", "<br>".join(map(_text, card.lines))
    if card.share is not None:
        bar = f'<div class="bar"><i style="width:{100 * min(1.0, max(0.0, card.share)):.0f}%"></i></div>'
    place = escape(Path(os.path.abspath(card.file)).as_uri())
    return (
        f'<li><a href="{place}"><div class="photo">{_thumbnail(card.file)}</div>'
        f'<div class="words"><div class="name"><span title="{_text(name)}">{_text(name)}</span>{below}</div>'
        f'<div class="value">{value}{bar}</div></div></a></li>\n'
    )


def _thumbnail(file: Path) -> str:
    try:
        image = open_image(file, (2 * SIDE, 2 * SIDE))
    except UsageError as error:
        return f"<span>cannot be read: {_text(error.cause)}</span>"
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}">'


def _text(words: str) -> str:
    return escape(visible(words))
