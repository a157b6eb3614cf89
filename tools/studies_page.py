"""Put the studies' figures into docs/training.md, after `siglip-ref study NAME --out docs/studies` has made them."""

import json
from pathlib import Path

from siglip_ref.training.study.run import Result, page
from siglip_ref.training.study.table import STUDIES

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- studies -->", "<!-- end -->"


def main() -> None:
    """Everything between two marks is made anew; a study that has not been run is left out."""
    document = DOCS / "training.md"
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    pages = []
    for name, study in STUDIES.items():
        path = DOCS / "studies" / f"{name}.json"
        if path.is_file():
            made = json.loads(path.read_text(encoding="utf-8"))
            pages.append(page(study, Result(**made), made["settings"]["seeds"], "studies/"))
    after = rest.partition(END)[2]
    document.write_text(f"{before}{BEGIN}\n\n" + "\n".join(pages) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
