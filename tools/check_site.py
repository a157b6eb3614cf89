"""The built site works without a network: every link in it leads somewhere, and no page loads anything from elsewhere.

python tools/check_site.py site
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Where a page's links lead, what it loads, and the names that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each element."""
        found = {name: value or "" for name, value in attrs}
        self.names |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(found["href"])


def defects(site: Path) -> list[str]:
    """In words."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
        if "_static" not in path.parts
    }
    wrong = [] if pages else [f"no page in {site}"]
    for path, page in pages.items():
        for target in page.loads:
            if urlsplit(target).netloc:
                wrong.append(f"{path.relative_to(site.resolve())} loads {target}")
        for target in page.links + page.loads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(file)
            if not file.exists() or (parts.fragment and known and unquote(parts.fragment) not in known.names | {""}):
                wrong.append(f"{path.relative_to(site.resolve())} leads to {target}, which is not there")
    return wrong


if __name__ == "__main__":
    found = defects(Path(sys.argv[1]))
    print("\n".join(found) or "every link leads somewhere, and nothing comes from elsewhere")
    sys.exit(bool(found))
