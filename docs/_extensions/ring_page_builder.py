"""The interactive pages, of the ring and of the loss, and the handout, built into the site beside its pages."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import loss_page
import ring_page


def _build(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        ring_page.build(Path(app.outdir))
        loss_page.build(Path(app.outdir))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", _build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
