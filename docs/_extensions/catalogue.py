"""The catalogue of mistakes as pages.

`{count}` says how many entries there are; `{mistakes} loss` writes every entry of `siglip_ref/mistakes/loss.toml`;
`{pitfalls} id id ...` lists some of them in a derivation, each with a link to its entry; `{symptoms}` is a search box
over what all of them show. A directive's content is what is read where no site is built.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from symptoms import symptoms

from siglip_ref.mistakes import FILES, Mistake, census, entries, find


def _entry(mistake: Mistake) -> str:
    lines = [
        f"({mistake.id})=",
        f"## {mistake.text[0].upper()}{mistake.text[1:]}",
        "",
        f"`{mistake.id}`. {mistake.shows[0].upper()}{mistake.shows[1:]}.",
        "",
        f"Repair: {mistake.repair}. Reported: {mistake.seen}.",
        "",
    ]
    for edit in mistake.edits:
        lines += ["```diff", f"# siglip_ref/{edit.file}"]
        lines += [*edit.diff(), "```", ""]
    return "\n".join(lines)


class _FromCatalogue(SphinxDirective):
    def _parsed(self, text: str) -> list[nodes.Node]:
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class Mistakes(_FromCatalogue):
    """Every entry of one file of the catalogue."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        if self.arguments[0] not in FILES:
            raise self.error(f"no such file of the catalogue: {self.arguments[0]}")
        return self._parsed("\n".join(_entry(mistake) for mistake in entries(self.arguments[0])))


class Pitfalls(_FromCatalogue):
    """Some entries, a line each."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        chosen = [find(name) for name in self.arguments[0].split()]
        return self._parsed(
            "\n".join(f"- [{m.text[0].upper()}{m.text[1:]}](#{m.id}). *{m.shows}.* `{m.id}`" for m in chosen)
        )


class Count(_FromCatalogue):
    """How many entries there are."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        return self._parsed(f"{census()}.")


class Symptoms(SphinxDirective):
    """A search box over all entries."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        return [nodes.raw("", symptoms(), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("mistakes", Mistakes)
    app.add_directive("pitfalls", Pitfalls)
    app.add_directive("count", Count)
    app.add_directive("symptoms", Symptoms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
