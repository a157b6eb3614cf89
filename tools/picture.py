"""The README's picture: what a failing check prints, as SVG without fonts or anything else from elsewhere.

python tools/picture.py docs/_static/failing-check.svg
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from siglip_ref.mistakes import find
from siglip_ref.vectors.demo import show

MISTAKE = "negatives-missing"


def picture() -> str:
    """The SVG."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    mistake = find(MISTAKE)
    console.print(f"[bold]$ siglip-ref demo {MISTAKE}[/bold]")
    console.print(f"{mistake.id}: {mistake.text}\n", highlight=False)
    console.print(show(mistake))
    svg = console.export_svg(title="siglip-ref", theme=MONOKAI, unique_id="check")
    svg = re.sub(r"@font-face\s*{.*?}", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
