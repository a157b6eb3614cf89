"""A search box over what all mistakes of the catalogue show; without Sphinx, as a page of its own can hold it."""

import json
from pathlib import Path

from siglip_ref.mistakes import FILES, entries


def symptoms() -> str:
    """The search box: HTML with the entries in it, of the pages that stand beside it."""
    rows = [[m.id, m.text, m.shows, f"{name}.html#{m.id}"] for name in FILES for m in entries(name)]
    script = (Path(__file__).parent / "symptoms.js").read_text(encoding="utf-8")
    data = json.dumps(rows).replace("</", "<\\/")
    return (
        '<p><label>What do you see? <input type="search" id="symptom" placeholder="loss too large, gradients zero" '
        'style="width: min(100%, 28rem)"></label></p><ul id="symptom-found" aria-live="polite"></ul>\n'
        f'<script type="application/json" id="symptom-data">{data}</script>\n<script>{script}</script>'
    )
