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

_STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #fff; --text: #1d1c1a; --faint: #64615c; --line: #dcd8d1;
  --mark: #1f5fae; --bar: #5b8fce; --empty: #eceae6 }
@media (prefers-color-scheme: dark) { :root { --page: #151413; --card: #201e1c; --text: #ece8e1; --faint: #a8a39a;
  --line: #383430; --mark: #8ec1ff; --bar: #4d86c4; --empty: #2a2725 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 90rem; padding: 1.25rem 1rem 3rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; overflow-wrap: anywhere } h2 { font-size: 1rem; margin: 2rem 0 .6rem }
p { margin: .2rem 0; max-width: 60rem; color: var(--faint); font-size: .9rem; overflow-wrap: anywhere }
kbd { font: inherit; border: 1px solid var(--line); border-radius: 4px; padding: 0 .35rem; background: var(--card) }
ol { list-style: none; margin: 1.2rem 0 0; padding: 0; display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)) }
a { display: flex; flex-direction: column; height: 100%; border-radius: 10px; overflow: hidden; color: inherit;
  text-decoration: none; background: var(--card); border: 1px solid var(--line) }
a:hover { border-color: var(--mark) } a:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
.photo { position: relative; display: flex; align-items: center; justify-content: center; aspect-ratio: 4 / 3;
  overflow: hidden; background: var(--empty) }
.photo img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain }
.photo span { padding: 1rem; font-size: .8rem }
.words { padding: .5rem .65rem .6rem; font-size: .82rem; line-height: 1.35; flex: 1; display: flex;
  flex-direction: column; justify-content: space-between; gap: .35rem }
.name { overflow-wrap: anywhere } .name span { display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden } .name small { display: block; color: var(--faint); font-size: .92em }
.value { font-variant-numeric: tabular-nums; color: var(--faint) }
.bar { height: 4px; border-radius: 2px; background: var(--empty); margin-top: .25rem }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar) }
@media (max-width: 30rem) { ol { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem }
  .words { font-size: .78rem } }
"""

_SCRIPT = """
const cards = [...document.querySelectorAll("ol a")];
const row = (card) => Math.round(card.getBoundingClientRect().top + scrollY);
const middle = (card) => { const box = card.getBoundingClientRect(); return box.left + box.width / 2; };
function beyond(at, step) {
  const rows = [...new Set(cards.map(row))].sort((a, b) => a - b);
  const wanted = rows[rows.indexOf(row(cards[at])) + step];
  const there = cards.map((card, i) => i).filter((i) => row(cards[i]) === wanted);
  const far = (i) => Math.abs(middle(cards[i]) - middle(cards[at]));
  return there.length ? there.reduce((a, b) => (far(b) < far(a) ? b : a)) : at;
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = cards.indexOf(document.activeElement);
  const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: cards.length - 1 };
  if (at >= 0) Object.assign(moves, { ArrowDown: beyond(at, 1), ArrowUp: beyond(at, -1) });
  const to = cards[at < 0 && event.key.startsWith("Arrow") ? 0 : moves[event.key]];
  if (!to) return;
  event.preventDefault();
  to.focus();
});
"""


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
