"""What commands write never replaces what is there, unless --force says so: one rule for all of them."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from siglip_ref.errors import UsageError, few
from siglip_ref.process.typed import visible


def require_free(
    files: Iterable[Path] = (), folders: Iterable[Path] = (), force: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Refuse, before any work, outputs that exist or could not be written.

    Parameters
    ----------
    files : must not be there; their folder must
    folders : must be empty, or not there: then they are made
    force : files that are there may be replaced
    inputs : what is read; no output may be one of them, not even by force, under whatever name
    """
    files, folders = list(files), list(folders)
    for path in (*files, *folders):
        require_name(path)
    _require_no_input(files, inputs)
    taken = [path for path in files if _is_taken(path)] + [path for path in folders if _is_filled(path)]
    if taken and not force:
        raise UsageError(
            expected="a free place for the output: a new file, a new or empty folder",
            got=f"{few(list(map(str, taken)), 3)}, there already",
            cause="what is there may be somebody's work, so it is not replaced unasked",
            repair="choose another name, or add --force to replace files of the same names",
        )
    for problem, cause in (*map(_no_room_for_file, files), *map(_no_room_for_folder, folders)):
        if problem:
            raise UsageError("a place that can be written to", problem, cause, "make the folder, or choose another")


@contextmanager
def refusals(expected: str, cause: str, repair: str) -> Iterator[None]:
    """What the system refuses meanwhile ends in an error that says so, in the system's words."""
    try:
        yield
    except OSError as error:
        raise UsageError(expected, str(error), cause, repair) from error


def require_name(path: Path) -> None:
    """Refuse what no file can be called: with what is written meanwhile, NAME.PID.part, in view."""
    try:
        os.lstat(path.with_name(f"{path.name}.{os.getpid()}.part") if path.name else path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # which are told apart below
        return
    except (OSError, ValueError) as error:
        raise UsageError(
            expected="a place that can be written to",
            got=f"{visible(str(path))[:100]}, {len(os.fsencode(path.name))} bytes long",
            cause=(error.strerror if isinstance(error, OSError) else None) or str(error),
            repair="choose a shorter name",
        ) from error


def _require_no_input(files: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse an output that is read, too: by its place on disk, as links and other spellings lead there."""

    def place(path: Path) -> tuple[int, int] | None:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None

    outputs = {found: path for path in files if (found := place(path))}
    if not outputs:
        return
    for path in inputs:
        if (found := place(path)) in outputs:
            raise UsageError(
                expected="outputs that are none of the inputs",
                got=f"{outputs[found]}, which is {path}",
                cause="one file as input and as output: the input would be lost",
                repair="choose another name for the output",
            )


def _is_taken(path: Path) -> bool:
    """Whether writing a file there would replace something; a terminal, a pipe or /dev/null loses nothing."""
    return os.path.lexists(path) and (path.is_file() or path.is_dir() or not path.exists())


def _is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)


def _no_room_for_file(path: Path) -> tuple[str, str]:
    """Why a file cannot be written there, and the cause; twice "" if it can."""
    if path.is_dir():
        return f"{path} is a folder", "a file of this name is to be written"
    if not path.parent.is_dir():
        return f"no folder {path.parent}", "no such folder, or a spelling mistake"
    return _no_right(path if path.exists() else path.parent)


def _no_room_for_folder(path: Path) -> tuple[str, str]:
    above = path
    while not os.path.lexists(above) and above != above.parent:
        above = above.parent
    return _no_right(above) if above.is_dir() else (f"{above} is a file", "a folder of this name is to be made")


def _no_right(path: Path) -> tuple[str, str]:
    return ("", "") if os.access(path, os.W_OK) else (f"no right to write to {path}", "its permissions")
