"""Write what the benchmarks of search measured into docs/search-your-photos.md, between its two markers."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "search-your-photos.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->"


def read(name):
    """A result, or none if it was not measured."""
    file = RESULTS / f"search_{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def kills(found):
    same = "the same bytes" if found["equal byte for byte"] else "OTHER BYTES"
    low, high = found["resident MB from the first shard to the end"]
    again = next((f"opened {n}" for key, n in found.items() if key.startswith("pictures opened")), "was not looked at")
    what = f"{found['pictures']:,} pictures, 1 % broken, killed {found['killed']} times at random"
    return (
        f"| {what} | {same} as of one that was not; a second run {again} of them; {low} to {high} MB resident from the "
        "first shard to the end |"
    )


def rows(found):
    right = "exact" if found["exactly the largest"] else "WRONG"
    ours, one = found["search with top 20, seconds"], found["one product, seconds"]
    return (
        f"| {found['rows']:,} rows of 768, the best 20, warm | {right}; {ours} s, one NumPy product {one} s: "
        f"{found['ratio']} times; cold {found['cold, seconds']} s, {found['cold, MB/s']} MB/s |"
    )


def photos(found):
    return (
        f"| {found['pictures']:,} JPEGs of 12 megapixels, {found['size']} | {found['index, images/s']} images/s, "
        f"{found['ratio']} of the forward pass alone |"
    )


def duplicates(found):
    at = "; ".join(
        f"at {level}: precision {one['precision']}, recall {one['recall']}"
        for level, one in found["at a similarity of"].items()
    )
    return f"| {found['planted']} planted duplicates among {found['pictures']:,} drawings, a small model | {at} |"


def heatmap(found):
    judged = {name: one for name, one in found.items() if isinstance(one, dict) and "inside" in one}
    parts = (
        f"{name}: {', '.join(f'{100 * inside:.1f} %' for inside in one['inside'])} (chance {100 * one['chance']:.1f} %)"
        for name, one in judged.items()
    )
    what = f"heat maps, {found['judged']} pictures of two shapes: the peak is inside the named one"
    what += f"; of {found['seeds']} trainings"
    return f"| {what} | {'; '.join(parts)} |"


def learn(found):
    alone = "the head alone moved" if found["the head alone"] else "MORE THAN THE HEAD MOVED"
    return (
        f"| `--learn head`, {found['photos']:,} photos, {found['size']}, {found['steps']:,} steps | {found['minutes']} "
        f"minutes, peak {found['peak MB']:,} MB; {alone} |"
    )


KINDS = {"kills": kills, "rows": rows, "photos": photos, "duplicates": duplicates, "heatmap": heatmap, "learn": learn}


def text():
    """The table of what was measured."""
    lines = [line(found) for name, line in KINDS.items() if (found := read(name))]
    return "\n".join(["| what | found |", "|---|---|", *lines]) + "\n"


def page():
    """The page with the table in it."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + "\n" + text() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
