"""Build the page that plays with the loss: one HTML file, with the toy's rows in it and every number computed by it.

python tools/loss_page.py FOLDER      writes loss-page.html
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ring_page import embedded, filled
from ring_page import read as read_shared

from mpi.batch import Job, make_batch

SOURCE = Path(__file__).parent.parent / "docs" / "loss_page"
SHOWN, LEARNED, WIDTH = 12, 32, 8
OFFSET, RATE = 0.5, 0.02  # of the inputs of the training; with both the collapse at bias 0 is complete


def data() -> dict[str, Any]:
    """The rows of `siglip-ring loss --pairs 12`, and what the towers of the training learn from and begin with."""
    images, texts = make_batch(Job(SHOWN, WIDTH, "blocking"), SHOWN)
    inputs = [rows + OFFSET for rows in make_batch(Job(LEARNED, WIDTH, "blocking"), LEARNED)]
    kernels = np.random.default_rng(1).normal(size=(2, WIDTH, WIDTH)) / np.sqrt(WIDTH)
    named = {"image": kernels[0].tolist(), "text": kernels[1].tolist()}
    training = {"images": inputs[0].tolist(), "texts": inputs[1].tolist(), "kernels": named}
    return {"images": images.tolist(), "texts": texts.tolist(), "training": training, "rate": RATE}


def build(folder: Path) -> None:
    """Write the page."""

    def read(name: str) -> str:
        return (SOURCE / name).read_text(encoding="utf-8")

    script = "\n".join([read_shared("dom.js"), read_shared("trace.js"), read("loss.js"), read("page.js")])
    parts = {
        "style": f"<style>\n{read_shared('page.css')}{read('page.css')}</style>",
        "script": f"<script>\n{script}</script>",
        "data": f'<script type="application/json" id="data">{embedded(data())}</script>',
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loss-page.html").write_text(filled(read("page.html"), parts), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/loss_page.py FOLDER")
    build(Path(sys.argv[1]))
    print(f"open {Path(sys.argv[1]) / 'loss-page.html'} in a browser")
