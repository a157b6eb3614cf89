"""How kernels are compiled: on first use, with one line that says so, and kept on disk where a place can be found."""

import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.sigutils import normalize_signature

from siglip_ref.process import compiling

F = TypeVar("F", bound=Callable[..., Any])

# Values are computed strictly, but for fused multiply-adds. Only the loops that add them up may reorder: freedom
# to reassociate inside exp would undo the rounding trick there (wrong by 40 %, and fast).
STRICT = {"contract"}
SUMS = {"contract", "reassoc", "nsz"}

# Numba compiles a kernel, and all that it calls, anew for each Python constant among what it is given, for a number
# and for the unsigned counter of a prange. So kernels hand one another numbers of one kind: COUNT(thread), ZERO, ONE.
# An index is unsigned, INDEX(thread) and FIRST: with one that might be below zero, loops stay scalar.
COUNT: Any = np.int64
INDEX: Any = np.uintp
ZERO, ONE, FIRST = COUNT(0), COUNT(1), INDEX(0)


def kernel(*, fastmath: set[str] = STRICT, parallel: bool = False) -> Callable[[F], F]:
    """Compile a function with Numba on its first call; the result is kept in Numba's cache on disk.

    The cache lies beside the source, else in the user's cache folder (`NUMBA_CACHE_DIR` overrules both). Where no
    folder can be written, the kernel is compiled anew in each process: slower, never broken.

    Other kernels call it by its name, as a linker does, so that it is compiled once, not once more in each of them.

    Parameters
    ----------
    fastmath : LLVM's freedoms for the arithmetic written in this very function (not for what it calls)
    parallel : `prange` spreads over Numba's threads
    """
    return lambda function: _apart(_compiled(function, fastmath, parallel=parallel))


def inner(*, fastmath: set[str] = STRICT, apart: bool = False) -> Callable[[F], F]:
    """A kernel that only kernels call; what Python would need to call it is a tenth of the time to compile.

    apart : called by its name, too; else it is compiled into each that calls it, and may become part of their loops
    """

    def compiled(function: F) -> F:
        dispatcher = _compiled(function, fastmath, no_cpython_wrapper=True)

        def keep(result: Any) -> None:
            dispatcher.overloads[tuple(result.signature.args)] = result

        def refuse(*_: object) -> None:
            raise TypeError(f"{function.__name__} is only for kernels to call")

        dispatcher.add_overload, dispatcher._compile_for_args = keep, refuse
        return _apart(dispatcher) if apart else dispatcher  # type: ignore[no-any-return]

    return compiled


def _compiled(function: Any, fastmath: set[str], **settings: Any) -> Any:
    # nobody calls kernels from C, and it takes 5 % of the time to compile
    settings |= {"fastmath": fastmath, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    dispatcher: Any = numba.njit(**settings)(function)
    with suppress(RuntimeError, AttributeError):  # no folder to write to, or a Numba whose cache cannot be stamped
        dispatcher._cache = _Cache(function)
    return dispatcher


_KERNELS: dict[str, Any] = {}
_SYMBOLS: dict[str, "_Loaded"] = {}


def _apart(dispatcher: Any) -> Any:
    function = dispatcher.py_func
    _KERNELS[name := f"{function.__module__}.{function.__qualname__}"] = dispatcher
    dispatcher.get_overload = lambda signature: _symbol(name, normalize_signature(signature)[0])
    return dispatcher


def _symbol(name: str, args: tuple[Any, ...]) -> str:
    """By which others call a kernel that is compiled for these arguments."""
    symbol = f"{name}.{hashlib.sha256(str(args).encode()).hexdigest()[:16]}"
    if symbol not in _SYMBOLS:
        compiled = _KERNELS[name].overloads[args]
        described = copy(compiled.fndesc)
        llvm.add_symbol(symbol, compiled.library.get_pointer_to_function(described.mangled_name))
        described.mangled_name = symbol
        compiled.target_context.insert_user_function(symbol, described)
        _SYMBOLS[symbol] = _Loaded(name, args)
    return symbol


class _Loaded(NamedTuple):
    """Stored with a kernel that calls this one, and called before it is read: now there is what it calls."""

    name: str
    args: tuple[Any, ...]

    def __call__(self) -> None:
        _KERNELS[self.name].compile(self.args)
        _symbol(self.name, self.args)


class _Stored(CompileResultCacheImpl):
    def reduce(self, data: Any) -> Any:
        """What is stored of a kernel, with those that it calls by name."""
        called = [found.name for found in data.library._final_module.functions if found.is_declaration]
        loaded = [_SYMBOLS[name] for name in called if name in _SYMBOLS]
        return super().reduce(data._replace(reload_init=[*data.reload_init, *loaded]))  # type: ignore[no-untyped-call]


class _Cache(FunctionCache):
    _impl_class = _Stored

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file._source_stamp = (self._cache_file._source_stamp, package_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was stored; nothing, where two processes that wrote at once mixed their files up."""
        found = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        return found if found is not None and found.signature.args == normalize_signature(sig)[0] else None


@cache
def package_stamp() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of all files that kernels come from: Numba looks only at a kernel's own file."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return tuple((file.name, (found := file.stat()).st_mtime_ns, found.st_size) for file in files)


class _Inside(event.Listener):
    """Tells who has to know that a thread is inside the compiler, or links what lies in the cache."""

    def on_start(self, event: event.Event) -> None:
        compiling.begin()

    def on_end(self, event: event.Event) -> None:
        compiling.end()


class _Progress(event.Listener):
    """Says once per process, on stderr, that kernels are being compiled; a cached kernel says nothing."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        dispatcher = event.data["dispatcher"]
        module = dispatcher.py_func.__module__ or ""  # none: a function made by exec
        if not self.said and module.startswith(__package__):
            self.said = True
            print("siglip-ref: compiling kernels for this machine, half a minute or so, once ...", file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        """Nothing to say."""


event.register("numba:compiler_lock", _Inside())
event.register("numba:compile", _Progress())
