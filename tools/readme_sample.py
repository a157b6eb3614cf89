"""Write what the README's first command prints into the README, shortened: nobody types it.

`python tools/readme_sample.py` rewrites what stands between the markers. A test runs the command's check and holds the
README to it: every word, every row, the tolerances; not the errors, whose last digits are each processor's own.
"""

import sys
from pathlib import Path

import siglip_ref as sr
from siglip_ref.check.model.adapters.find import load_target
from siglip_ref.report.text import to_text

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- check-output -->", "<!-- end -->"
WIDTH = 120  # columns: the title is one line then
# Rows that are shown, each run of them after dots: values in the order of the network, gradients; a key's bias, whose
# gradient is zero by structure; the last ones.
SHOWN = ("image/stem", "image/block00/+attn", "d image/pool/attn/k/bias", "d text/head/kernel", "d log_scale", "d bias")
SPREAD = 1.5  # of a tolerance between processors


def output() -> str:
    """What `siglip-ref check model hf:tiny` prints."""
    return to_text(sr.check_model(load_target("hf:tiny")), WIDTH)


def shortened(text: str) -> str:
    """The verdict, the head of the table and some of its rows."""
    lines = text.split("\n\n", 2)
    head, table = lines[0], lines[1].splitlines()
    kept, skipped = [table[0]], False
    for line in table[1:]:
        if line.split("  ")[0] in SHOWN:
            kept += ["..."] * skipped + [line]
            skipped = False
        else:
            skipped = True
    return "\n".join([head, "", *kept])


def of_readme() -> str:
    """The block as it stands."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip().strip("`").strip()


def differences(printed: str, real: str) -> list[str]:
    """Lines that do not say the same: words must agree, tolerances to within SPREAD; errors are not compared."""
    old, new = printed.splitlines(), real.splitlines()
    if len(old) != len(new):
        return [f"{len(old)} lines, not {len(new)}"]
    return [f"{a!r} is now {b!r}" for a, b in zip(old, new, strict=True) if not _alike(a.split(), b.split())]


def _alike(old: list[str], new: list[str]) -> bool:
    """A row of the table is a name of one or two words, error, error / noise, tolerance, ratio, cosine, verdict."""
    if len(old) != len(new) or old[-1:] != new[-1:] or old[-1:] not in (["pass"], ["zero"]):
        return old == new
    within = 1 / SPREAD <= float(old[-4]) / float(new[-4]) <= SPREAD
    return within and old[:-6] == new[:-6] and old[-3:] == new[-3:]


def main() -> int:
    """Write the block anew."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    block = f"{begin}\n```\n{shortened(output())}\n```\n"
    README.write_text(before + block + END + rest.partition(END)[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
