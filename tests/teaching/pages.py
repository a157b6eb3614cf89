"""What tests of a page ask of it."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

WORLDS = (2, 3, 4, 8)

# The story sets the stage when the browser first tells it what is in view; a test that is quicker would be undone.
SETTLED = """new Promise((settled) => new IntersectionObserver(
    () => requestAnimationFrame(() => requestAnimationFrame(settled))).observe(document.body)).then(() => true)"""


def siglip_ring(*arguments):
    """What the command prints."""
    command = [sys.executable, "-c", "import siglip_ring; siglip_ring.main()", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def text(page, selector):
    return page.run(f"document.querySelector({json.dumps(selector)}).innerText")


def click(page, selector):
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def slide(page, selector, value):
    """Move a slider, as a reader does."""
    node = f"document.querySelector({json.dumps(selector)})"
    page.run(f"{node}.value = {value}; {node}.dispatchEvent(new Event('input'))")


def box(page, selector):
    """left, right, top, bottom and width of an element, on the screen."""
    found = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"
    return [page.run(found)[side] for side in ("left", "right", "top", "bottom", "width")]


def violations(page):
    """What axe-core finds."""
    axe = Path(next(iter(find_spec("axe_playwright_python").submodule_search_locations))) / "axe.min.js"
    page.run(axe.read_text(encoding="utf-8") + "; 0")
    return page.run("axe.run().then((r) => r.violations.map((v) => [v.id, ...v.nodes.map((n) => n.html)].join(' ')))")
