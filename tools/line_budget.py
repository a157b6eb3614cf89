"""Small is a feature: print how many lines of code each room has and may have; exit 1 if one has more, or a folder too
many files."""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONG_FILE = 250
MOST_FILES = 15  # in a folder, besides __init__.py
WHEEL = 18_000  # lines of code that all of siglip_ref shall have in the end; what stands here twice goes first

# Of each room: its paths, and the lines of code it may have (no blank lines, comments, docstrings). A change that needs
# more says in its commit what went for it.
BUDGETS = (
    ("operations", ("ops",), 630),
    ("model", ("model", "architecture"), 939),
    ("SigLIP 2", ("siglip2",), 803),
    ("arithmetic, noise", ("arithmetic", "noise"), 1_058),
    ("engine", ("check/engine",), 1_720),
    ("call", ("check/call",), 1_021),
    ("diagnosis", ("check/diagnosis",), 5_612),
    ("check loss", ("check/loss",), 1_707),
    ("check ranks", ("check/ranks",), 1_239),
    ("check model", ("check/model",), 5_289),
    ("check step", ("check/step",), 2_503),
    ("check files", ("check/files",), 1_285),
    ("report, mistakes", ("report", "mistakes"), 2_283),
    ("vectors", ("vectors",), 1_384),
    ("fast", ("fast",), 3_188),
    ("checkpoint", ("checkpoint",), 2_000),
    ("use", ("use",), 2_394),
    ("training", ("training",), 2_118),
    ("process, commands", ("process", "cli"), 2_146),
    ("ring", ("../mpi", "../siglip_ring.py"), 2_092),
    ("ring.py", ("../mpi/ring.py",), 80),
    ("ring's loss.py", ("../mpi/loss.py",), 80),
)


def files(path: str) -> list[Path]:
    """A Python file, or all of a folder."""
    place = ROOT / "siglip_ref" / path
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def lines_of_code(file: Path) -> int:
    """Lines that hold more than a comment or a docstring."""
    source = file.read_text(encoding="utf-8")
    silent: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            silent.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    numbered = enumerate(source.splitlines(), start=1)
    return sum(n not in silent and bool(line.strip()) and not line.strip().startswith("#") for n, line in numbered)


def lines(file: Path) -> int:
    """All lines, as an editor counts them."""
    return len(file.read_text(encoding="utf-8").splitlines())


def main() -> int:
    """Print the table."""
    over = False
    print(f"{'room':<20}{'lines':>8}{'budget':>8}")
    for room, paths, budget in BUDGETS:
        count = sum(lines_of_code(file) for path in paths for file in files(path))
        over |= count > budget
        print(f"{room:<20}{count:>8}{budget:>8}{'  OVER' if count > budget else ''}")
    print(f"{'siglip_ref':<20}{sum(map(lines_of_code, files('.'))):>8}{WHEEL:>8}  in the end")
    for file in files(".") + files("../mpi"):
        if lines(file) > LONG_FILE:
            print(f"longer than {LONG_FILE} lines: {file.resolve().relative_to(ROOT).as_posix()} ({lines(file)})")
    for folder, count in Counter(f.parent for f in files(".") + files("../mpi") if f.name != "__init__.py").items():
        if count > MOST_FILES:
            over = True
            print(f"more than {MOST_FILES} files: {folder.resolve().relative_to(ROOT).as_posix()} ({count})  OVER")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
