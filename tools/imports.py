"""Who imports whom: rooms, arrows and circles of the packages; with names, the arrows of these rooms one by one.

    pip install grimp; python tools/imports.py [check ...]

A room is a folder or a file directly below siglip_ref, or below siglip_ref/check. Imports for types alone count not.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import grimp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parent.parent
Arrows = set[tuple[str, str]]


def arrows_of(graph: grimp.ImportGraph, room: Callable[[str], str]) -> Arrows:
    """From the room that imports to the one that is imported; room(module) is "" for modules that do not count."""
    pairs = {
        (room(one), room(other)) for one in graph.modules for other in graph.find_modules_directly_imported_by(one)
    }
    return {(one, other) for one, other in pairs if one and other and one != other}


def circles(arrows: Arrows) -> list[list[str]]:
    """Sets of rooms each of which reaches all others of its set."""
    names = sorted({name for arrow in arrows for name in arrow})
    places = np.array([(names.index(one), names.index(other)) for one, other in sorted(arrows)]).reshape(-1, 2)
    matrix = csr_array((np.ones(len(places)), tuple(places.T)), shape=(len(names), len(names)))
    _, label = connected_components(matrix, connection="strong")
    groups = ([name for name, own in zip(names, label, strict=True) if own == one] for one in np.unique(label))
    return [group for group in groups if len(group) > 1]


def room_below(package: str) -> Callable[[str], str]:
    """The folder or file directly below a package, itself left out."""
    depth = package.count(".") + 1
    return lambda module: [*module.split("."), ""][depth] if module.startswith(f"{package}.") else ""


def tell(title: str, graph: grimp.ImportGraph, room: Callable[[str], str]) -> Arrows:
    """Print one line of counts, and every circle."""
    arrows = arrows_of(graph, room)
    rooms = {name for module in graph.modules if (name := room(module))}
    found = circles(arrows)
    print(f"{title:<20}{len(rooms):>4} rooms {len(arrows):>4} arrows {len(found):>3} circles")
    for circle in found:
        print(f"  circle of {len(circle)}: {', '.join(circle)}")
    return arrows


def entries(folder: Path) -> Iterable[Path]:
    """What stands in a folder, caches left out."""
    return (path for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))


def main(names: list[str]) -> None:
    """Print the table; arrows of the rooms that are named."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph("siglip_ref", "mpi", exclude_type_checking_imports=True, cache_dir=None)
    arrows = tell("siglip_ref", graph, room_below("siglip_ref"))
    inside = tell("siglip_ref/check", graph, room_below("siglip_ref.check"))
    tell("mpi", graph, room_below("mpi"))
    tell("all files", graph, lambda module: module)
    print(f"siglip_ref has {len(list(entries(ROOT / 'siglip_ref')))} entries at its top")
    for folder in sorted({path.parent for package in ("siglip_ref", "mpi") for path in (ROOT / package).rglob("*.py")}):
        count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        if count > 15:
            print(f"{folder.relative_to(ROOT)} has {count} Python files")
    for one, other in sorted(arrows | inside):
        if one in names:
            print(f"{one} -> {other}")


if __name__ == "__main__":
    main(sys.argv[1:])
