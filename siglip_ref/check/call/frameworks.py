"""What a framework must be able to do for the checker, and which one a function belongs to."""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from siglip_ref.errors import UsageError, near
from siglip_ref.ops.elementary import Array

# Ways to call a loss. Every framework can do "plain"; the others are the contract a hand-written backward may break.
Way = Literal[
    "plain",
    "again",  # a second call must give the same
    "upstream",  # the loss is multiplied by 3 after it was computed
    "accumulate",  # forward and backward twice, into the same gradients
    "two graphs",  # a second forward with other inputs before the first backward
    "strided",  # inputs that are not contiguous
    "eager",  # without jit
    "only image_embed",  # one input alone requires a gradient
    "only text_embed",
    "only log_scale",
    "only bias",
]
ARGUMENTS = ("image_embed", "text_embed", "log_scale", "bias")
DTYPES = ("float64", "float32", "bfloat16", "float16")  # in which something can be judged
ALONE: dict[Way, str] = {
    "only image_embed": "image_embed",
    "only text_embed": "text_embed",
    "only log_scale": "log_scale",
    "only bias": "bias",
}

INSTALL = {"torch": "pip install torch", "jax": "pip install jax", "numpy": "pip install numpy"}
_ROOTS = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "flax": "jax", "optax": "jax", "equinox": "jax"}


@dataclass(frozen=True)
class Setting:
    """In what a loss is computed. dtype: of the products; autocast: inputs float32, products in dtype; frozen: inputs
    that need no gradient; products: "tf32" or "bfloat16", to which float32 products may round what goes into them."""

    dtype: str
    scalar_dtype: str
    device: str
    autocast: bool
    frozen: tuple[str, ...] = ()
    products: str = ""

    def asking(self, name: str) -> "Setting":
        """With the gradient of this input, too."""
        return replace(self, frozen=tuple(one for one in self.frozen if one != name))

    def without(self, name: str) -> "Setting":
        """Without the gradient of this input."""
        return self if name in self.frozen else replace(self, frozen=(*self.frozen, name))

    @property
    def input_dtype(self) -> str:
        """Of the embeddings that are handed over."""
        return "float32" if self.autocast else self.dtype

    @property
    def regime(self) -> str:
        """What its rounding noise is measured in: see `siglip_ref.noise.measure`."""
        if self.products:
            return self.products if self.products == "tf32" else f"{self.products} products"
        kind = "cpu" if self.device == "cpu" else "cuda"  # what is no CPU is modelled as a GPU
        return f"autocast {self.dtype} on {kind}" if self.autocast else self.dtype

    @property
    def words(self) -> str:
        """For titles."""
        products = f", products in {self.products}" if self.products else ""
        return f"{self.dtype}{', autocast' * self.autocast}{products} on {self.device}"


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call, float64, exact in the dtype they will have."""

    image_embed: Array
    text_embed: Array
    scale: float  # its logarithm, or itself
    bias: float


@dataclass(frozen=True)
class Outcome:
    """Loss and gradients in float64, by argument name; None: no gradient arrived. modified: inputs that changed."""

    loss: Array
    gradients: dict[str, Array | None]
    modified: list[str] = field(default_factory=list)


def wanted(setting: Setting, way: Way) -> list[str]:
    """The inputs whose gradients are asked for."""
    alone = ALONE.get(way)
    return [name for name in ARGUMENTS if name not in setting.frozen and alone in (None, name)]


class Framework(Protocol):
    """How losses are called and differentiated in one framework."""

    name: str
    ways: tuple[Way, ...]

    def call(self, fn: Callable[..., Any], inputs: Inputs, setting: Setting, way: Way) -> Outcome:
        """Loss and gradients; raises what fn raises, and UsageError for a result that is no scalar."""

    def environment(self, fn: Callable[..., Any], setting: Setting) -> AbstractContextManager[None]:
        """Everything the call might change in the user's process is put back at its end."""


def load_framework(name: str) -> Framework:
    """The framework of this name, imported now."""
    require_framework(name, "check_loss")
    framework: Framework = import_module(f"siglip_ref.check.call.in_{name}").FRAMEWORK()
    return framework


def require_framework(name: object, check: str) -> None:
    """One that is known and installed; it is not imported. check: the function that was called."""
    if not isinstance(name, str) or name not in INSTALL:
        raise UsageError(
            expected='framework "torch", "jax" or "numpy"',
            got=repr(name),
            cause="",
            repair=f'siglip_ref.{check}(fn, framework="torch"); on the command line --framework torch',
            near=near(name, INSTALL) if isinstance(name, str) else (),
        )
    if not installed(name):
        raise UsageError(
            expected=f"{name}, to call this loss with",
            got=f"no installed {name}",
            cause="siglip-ref installs no framework, so that it cannot change yours",
            repair=INSTALL[name],
        )


def installed(name: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return find_spec(name) is not None
    except ValueError:  # a module that was put into sys.modules by hand
        return False


def framework_of(fn: Callable[..., Any], check: str = "check_loss") -> str:
    """The framework a function belongs to: of the names it uses, else of the module it stands in. check: the function
    that was called."""
    for evidence in (_of_object(fn, depth=3), _of_module(fn)):
        found = set(evidence)
        if len(found - {"numpy"}) == 1:
            return (found - {"numpy"}).pop()
        if found == {"numpy"}:
            return "numpy"
        if found:
            break
    raise UsageError(
        expected="a function that shows which framework it uses",
        got=f"{describe(fn)}, which " + ("uses torch and jax" if found else "names neither torch, jax nor numpy"),
        cause="the framework is taken from the names a function uses, and from its module",
        repair=f'write it down: siglip_ref.{check}(fn, framework="torch"), or "jax", or "numpy"; on the command line '
        "--framework torch",
    )


def dtype_name(dtype: object, argument: str) -> str:
    """Of a name, or of NumPy's, Torch's or JAX's own type: torch.bfloat16, jnp.float32, np.dtype("float64")."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    name = name.split(".")[-1]
    if name not in DTYPES:
        raise UsageError(
            expected=f"{argument} one of {', '.join(DTYPES)}",
            got=repr(dtype),
            cause="tolerances are known for these floating-point formats only",
            repair=f'{argument}="float32"',
        )
    return name


def describe(fn: object) -> str:
    """The name of a callable as its author knows it."""
    if isinstance(fn, functools.partial):
        return f"partial of {describe(fn.func)}"
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    module = getattr(fn, "__module__", None) or type(fn).__module__
    name = name.replace("<locals>.", "").replace("<lambda>", "lambda")
    return name if module in ("__main__", "builtins", None) else f"{module}.{name}"


def _of_object(value: object, depth: int) -> Iterator[str]:
    """Frameworks of a value: of its type, and for a function of everything it names."""
    root = _root(value)
    if root:
        yield root
    if depth == 0:
        return
    if isinstance(value, functools.partial):
        yield from _of_object(value.func, depth)
    elif isinstance(value, types.MethodType):
        yield from _of_object(value.__func__, depth)
        yield from _of_object(value.__self__, depth - 1)
    elif isinstance(value, types.FunctionType):
        for name, used in _named(value):
            yield from _of_object(used, depth - 1) if used is not None else filter(None, [_ROOTS.get(name)])
    elif hasattr(value, "__wrapped__"):
        yield from _of_object(value.__wrapped__, depth)
    elif not isinstance(value, type | types.ModuleType):
        call = inspect.getattr_static(type(value), "__call__", None)
        if isinstance(call, types.FunctionType):
            yield from _of_object(call, depth - 1)


def _root(value: object) -> str | None:
    """Of a module its own package; of anything else the packages of its type's ancestors, or where it was defined."""
    if isinstance(value, types.ModuleType):
        homes = [value.__name__]
    else:
        homes = [getattr(value, "__module__", None) or "", *(kind.__module__ for kind in type(value).__mro__)]
    roots = [home.split(".")[0] for home in homes]
    return next((_ROOTS[root] for root in roots if root in _ROOTS), "numpy" if "numpy" in roots else None)


def _named(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Names a function uses, also in functions inside it, with the global or enclosed values they stand for."""
    codes, names = [function.__code__], set[str]()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    for name in sorted(names):
        yield name, function.__globals__.get(name)
    for cell in function.__closure__ or ():
        try:
            yield "", cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue


def _of_module(fn: object) -> Iterator[str]:
    inner = fn
    while isinstance(inner, functools.partial) or hasattr(inner, "__wrapped__"):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__wrapped__
    home = sys.modules.get(type(inner).__module__)
    for value in list(getattr(inner, "__globals__", vars(home) if home else {}).values()):
        if isinstance(value, types.ModuleType):
            yield from filter(None, [_root(value)])
