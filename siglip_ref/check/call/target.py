"""Finding what the command line names: "module:name" or "file.py:name"."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siglip_ref.errors import UsageError, near


def called_by(fn: Callable[..., Any] | str) -> Callable[..., Any]:
    """What a check was given: itself, or what its name stands for."""
    return load_callable(fn) if isinstance(fn, str) else fn


def load_callable(target: str) -> Callable[..., Any]:
    """The object of this name; dots reach into objects, "losses:Model.loss".

    Raises
    ------
    UsageError : no colon, no such file, module or name, or the module fails to import
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(
            expected='"module:name" or "file.py:name"',
            got=repr(target),
            cause="there is no colon between the place and the name",
            repair='siglip-ref check loss "losses.py:siglip_loss"',
        )
    value: Any = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    for part in name.split("."):
        if not hasattr(value, part):
            alike = near(part, vars(value))
            raise UsageError(
                expected=f"{part} in {place}",
                got="these names: " + (", ".join(n for n in vars(value) if not n.startswith("_"))[:300] or "none"),
                cause="",
                repair=f'siglip-ref check loss "{place}:{alike[0] if alike else "NAME"}"',
                near=alike,
            )
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def _load_module(name: str) -> object:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        own = cause.name is not None and (name == cause.name or name.startswith(f"{cause.name}."))
        raise UsageError(
            expected=f"a module {name}",
            got=f"no module {cause.name}",
            cause=f"neither installed nor in {here}" if own else f"{name} itself imports {cause.name}",
            repair=f'give the file instead: "{name.replace(".", "/")}.py:NAME"' if own else f"pip install {cause.name}",
        ) from cause
    except Exception as cause:
        raise _fails(name, cause) from cause
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _load_file(path: Path) -> object:
    if not path.is_file():
        raise UsageError(
            expected=f"a file {path}",
            got="no such file",
            cause=f"another working directory; this one is {Path.cwd()}",
            repair="check the path",
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)  # as `python file.py` does, for its neighbours
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise _fails(str(path), cause) from cause
    finally:
        sys.path.remove(folder)
    return module


def _fails(place: str, cause: Exception) -> UsageError:
    return UsageError(
        expected=f"{place}, which can be imported",
        got=f"{type(cause).__name__}: {cause}",
        cause="the import fails before anything can be checked",
        repair=f'python -c "import {Path(place).stem}" shows the whole traceback',
    )
