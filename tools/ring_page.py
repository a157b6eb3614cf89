"""Build the interactive page of the ring: one HTML file that holds everything, the traces of real runs above all.

python tools/ring_page.py FOLDER      writes ring-page.html, ring-handout.html and, where Chromium is, ring-handout.pdf
"""

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

import ring_picture
import ring_time
from ring_breaks import BREAKS, WORLD, all_breaks

import siglip_ref as sr
from mpi.cost import kept, memory, traffic
from siglip_ref.mistakes import CATALOGUE

DOCS = Path(__file__).parent.parent / "docs"
SOURCE = DOCS / "ring_page"
WORLDS = (2, 3, 4, 8)
EACH, WIDTH = 2, 3
SCHEMES = ("allgather", "autograd-like", "blocking")
WORDS = {
    "blocking": "one trip, blocking",
    "overlapped": "one trip, overlapped",
    "bidirectional": "one trip, both ways",
    "autograd-like": "autograd ring",
    "allgather": "all-gather",
    "masked-allreduce": "masked sums",
}
SCRIPTS = ("dom.js", "trace.js", "ring.js", "stage.js", "time.js", "memory.js", "break.js", "page.js")
# The questions at the end of docs/ring.md, in their order: which of the twenty each of them is.
ASKED = (16, 17, 11, 12, 13, 14)
HANDED_OUT = ("forget", "reuse", "twice", "positives", "local", "ddp")
REAL = {"pairs": 32_768, "world": 64, "dim": 1152, "tile": 128}


def command(*arguments: str) -> str:
    """What `siglip-ring` prints."""
    start = [sys.executable, "-c", "import siglip_ring; siglip_ring.main()", *arguments]
    done = subprocess.run(start, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"siglip-ring {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def toy(world: int) -> list[str]:
    """The toy of the page, as arguments."""
    return ["--threads", str(world), "--pairs", str(EACH * world), "--dim", str(WIDTH)]


def trace(scheme: str, world: int) -> Any:
    """The trace of a real run."""
    with tempfile.TemporaryDirectory() as folder:
        command("trace", folder, "--scheme", scheme, *toy(world))
        document = json.loads((Path(folder) / "trace.json").read_text())
    for row in document["events"]:
        row[-2:] = [round(seconds, 7) for seconds in row[-2:]]  # tenths of a microsecond are enough
    return document


def printed_loss(world: int) -> str:
    """The loss as `siglip-ring loss` prints it."""
    found = re.search(r"^loss +(\S+) =", command("loss", *toy(world)), re.MULTILINE)
    assert found
    return found[1]


def frames() -> list[str]:
    """The pictures of `siglip-ring loss --svg`, one a hop."""
    with tempfile.TemporaryDirectory() as folder:
        command("loss", "--svg", folder, *toy(WORLD))
        return [path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.svg"))]


def collected() -> dict[str, Any]:
    """All that the page shows, from runs made now."""
    with ThreadPoolExecutor(2) as pool:
        runs = {scheme: {world: pool.submit(trace, scheme, world) for world in WORLDS} for scheme in SCHEMES}
        printed = {world: pool.submit(printed_loss, world) for world in WORLDS}
        return {
            "runs": {scheme: {world: run.result() for world, run in of.items()} for scheme, of in runs.items()},
            "printed": {world: line.result() for world, line in printed.items()},
            "breaks": all_breaks(),
            "times": {
                scheme: {world: ring_time.told(scheme, world) for world in WORLDS} for scheme in ring_time.SCHEMES
            },
        }


def rounds(scheme: str, world: int) -> int:
    """In one trip a hop's texts and gradient are one round; in the others each message, or sum, is."""
    one_trip = dict.fromkeys(("blocking", "overlapped", "bidirectional"), world)
    return (one_trip | {"masked-allreduce": 2 * world}).get(scheme, 2 * (world - 1))


def agreement(document: Any) -> int:
    """Whole numbers a rank that the ranks agree on before the first hop, divided by W."""
    events = [dict(zip(document["columns"], row, strict=True)) for row in document["events"]]
    first = next(event for event in events if event["kind"] == "sum")
    return int(first["bytes"]) // 8 // len(document["sizes"])


def real_size() -> str:
    """A table: what the schemes cost at a size that is trained, by the counts of `mpi.cost`."""
    pairs, world, dim, tile = REAL["pairs"], REAL["world"], REAL["dim"], REAL["tile"]
    rows = []
    for scheme, words in WORDS.items():
        sent = traffic(scheme, [pairs // world] * world, 0, dim)
        count = f"{sent.messages}" if sent.messages else f"{sent.sums} sums"
        megabytes = (sent.numbers or sent.sum_numbers) * 4 / 1e6
        held = memory(scheme, pairs, world, dim, tile, 4) * 4 / 1e6
        cells = [count, rounds(scheme, world), f"{megabytes:,.0f}", f"{held:,.0f}"]
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{words} <code>{scheme}</code></th>{numbers}</tr>')
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("scheme", "messages", "rounds", "MB sent", "MB at the peak")
    )
    label = f"{pairs:,} pairs on {world} ranks, D = {dim}, float32: of one rank; memory beside its own shards"
    return f"<table><caption>{label}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def keeps() -> str:
    """What an autograd ring keeps, at that size: for docs/ring.md and the page."""
    world, b, dim = REAL["world"], REAL["pairs"] // REAL["world"], REAL["dim"]
    parts = kept(world, b, dim, 4)
    texts, logits, matches, whole = (f"{part / 1e6:.1f} MB" for part in (*parts, sum(parts)))
    size = f"W = {world}, b = {b}, D = {dim:,} in float32"
    return f"For {size} these are {texts} of texts, {logits} of logits and {matches} of matches: {whole}."


def asked(text: str) -> str:
    """The last section of docs/ring.md as a list of questions with answers."""
    found = re.findall(r"\*\*(.+?\?)\*\* (.+?)\n(?:\n|$)", text.partition("## Also asked\n")[2], re.DOTALL)
    if len(found) != len(ASKED):
        raise ValueError(f"docs/ring.md answers {len(found)} questions at its end, not {len(ASKED)}")
    rows = zip(ASKED, found, strict=True)
    return "\n".join(f'<dt>{escape(q, False)}</dt><dd id="answer-{n}">{escape(a, False)}</dd>' for n, (q, a) in rows)


def mistakes() -> str:
    """For the handout: in the words of the catalogue, and where it has none, of the page."""
    chosen = [one for one in BREAKS if one.name in HANDED_OUT]
    words = [CATALOGUE[one.named].text if one.named in CATALOGUE else f"{one.title}: {one.brief}" for one in chosen]
    return "\n".join(f"<li>{escape(text[0].upper() + text[1:], False)}.</li>" for text in words)


def embedded(data: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def filled(template: str, parts: dict[str, str]) -> str:
    """The template with every <!--name--> replaced; each must be there, and none may be left."""
    for name in parts:
        if f"<!--{name}-->" not in template:
            raise ValueError(f"the template has no <!--{name}-->")
    return re.sub(r"<!--([a-z0-9-]+)-->", lambda found: parts[found[1]], unbroken(template))


def unbroken(template: str) -> str:
    """No line ends inside W - 1 or W = 2, between a number and ms, nor inside an option of a command."""
    joined = re.sub("\\b([WBD]) ([\u2212=]) (?=\\d)", "\\1\u00a0\\2\u00a0", template)
    joined = re.sub(r"(?<=\d) (?=ms\b)", "\u00a0", joined)
    options = r"(?<=\s)(--[a-z]+(?: \d+)?)(?=[\s<])"
    return re.sub(
        r"<code>siglip-ring .*?</code>", lambda found: re.sub(options, r'<span class="one">\1</span>', found[0]), joined
    )


def read(name: str) -> str:
    """A source of the page."""
    return (SOURCE / name).read_text(encoding="utf-8")


def build(folder: Path) -> None:
    """Write both pages."""
    data, pictures = collected(), frames()
    numbered = {f"frame-{hop}": picture for hop, picture in enumerate(pictures)}
    script = "\n".join(read(name) for name in SCRIPTS)
    parts = {
        "style": f"<style>\n{read('page.css')}</style>",
        "script": f"<script>\n{script}</script>",
        "data": f'<script type="application/json" id="data">{embedded(data)}</script>',
        "real-size": real_size(),
        "printed": escape(data["printed"][WORLD]),
        "fresh": f"{sr.expected_loss(REAL['pairs'], math.log(10), -10.0):,.4f}",
        "fresh-zero": f"{sr.expected_loss(REAL['pairs'], math.log(10), 0.0):,.1f}",
        "keeps": keeps(),
        "asked": asked((DOCS / "ring.md").read_text(encoding="utf-8")),
        "agreement": str(agreement(data["runs"]["blocking"][WORLD])),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ring-page.html").write_text(filled(read("page.html"), numbered | parts), encoding="utf-8")
    shared = {name: parts[name] for name in ("real-size", "printed")}
    toy_run = data["runs"]["blocking"][WORLD]
    stills = {f"frame-{hop}": ring_picture.still(toy_run, hop) for hop in range(WORLD + 1)}
    (folder / "ring-handout.html").write_text(
        filled(read("handout.html"), stills | shared | {"mistakes": mistakes()}), encoding="utf-8"
    )
    print_handout(folder)


def print_handout(folder: Path) -> None:
    """The handout as PDF, if there is a Chromium to print it."""
    if not shutil.which("chromium"):
        print("no chromium: the handout is not printed as PDF", file=sys.stderr)
        return
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with tempfile.TemporaryDirectory() as profile:
        target = [
            f"--user-data-dir={profile}",
            "--no-pdf-header-footer",
            f"--print-to-pdf={folder / 'ring-handout.pdf'}",
        ]
        page = (folder / "ring-handout.html").absolute().as_uri()
        subprocess.run(["chromium", *options, *target, page], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/ring_page.py FOLDER")
    build(Path(sys.argv[1]))
    print(f"open {Path(sys.argv[1]) / 'ring-page.html'} in a browser; ring-handout.html beside it is one page to print")
