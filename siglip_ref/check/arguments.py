"""The arguments of a check of a loss, refused with a reason before anything runs."""

import inspect
from collections.abc import Mapping, Sequence

from siglip_ref.check.frameworks import ARGUMENTS, Setting, describe
from siglip_ref.check.tolerance import ARITHMETIC
from siglip_ref.check.truth import CONVENTIONS, Convention
from siglip_ref.errors import UsageError

_COUNTS = {4: "four", 5: "five", 6: "six"}


def require_callable(
    fn: object, arguments: Sequence[str] = ARGUMENTS, keywords: Mapping[str, str] | None = None
) -> None:
    """An instance, not a class; it takes `arguments` by position, and `keywords` by name."""
    if isinstance(fn, type) or not callable(fn):
        raise UsageError(
            expected="a function, or an object that can be called",
            got=f"the class {describe(fn)}" if isinstance(fn, type) else f"a {type(fn).__name__}",
            cause="a class is not yet a loss" if isinstance(fn, type) else "another thing by this name",
            repair=f"give an instance: {fn.__name__}(...)" if isinstance(fn, type) else "check the name",
        )
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # compiled functions need not tell
        return
    try:
        signature.bind(*(None for _ in arguments), **(keywords or {}))
    except TypeError as cause:
        named = "".join(f", and {name}= by name" for name in keywords or {})
        raise UsageError(
            expected=f"a loss with {_COUNTS[len(arguments)]} arguments by position: {', '.join(arguments)}{named}",
            got=f"{describe(fn)}{signature}",
            cause=f"another number of arguments ({cause})",
            repair=f"wrap it: lambda {', '.join(map(_short, (*arguments, *(keywords or {}))))}: fn(...)",
        ) from None


def _short(argument: str) -> str:
    return argument.removesuffix("_embed")


def setting_of(dtype: object, scalar_dtype: object, device: str, precision: str) -> Setting:
    """In what the loss will be computed; types may be names, or a framework's own."""
    name, scalar = dtype_name(dtype, "dtype"), dtype_name(scalar_dtype, "scalar_dtype")
    if precision not in ("pure", "autocast") or (precision == "autocast" and name not in ("bfloat16", "float16")):
        raise UsageError(
            expected='precision "pure", or "autocast" with dtype "bfloat16" or "float16"',
            got=f'precision {precision!r} with dtype "{name}"',
            cause="autocast computes products in 16 bits",
            repair='check_loss(fn, dtype="bfloat16", precision="autocast")',
        )
    if name == "float64":
        scalar = "float64"
    return Setting(name, scalar, str(device), precision == "autocast")


def dtype_name(dtype: object, argument: str) -> str:
    """Of a name, or of NumPy's, Torch's or JAX's own type: torch.bfloat16, jnp.float32, np.dtype("float64")."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    name = name.split(".")[-1]
    if name not in ARITHMETIC:
        raise UsageError(
            expected=f"{argument} one of {', '.join(ARITHMETIC)}",
            got=repr(dtype),
            cause="tolerances are known for these floating-point formats only",
            repair=f'{argument}="float32"',
        )
    return name


def declared_conventions(scale: str, embeddings: str) -> list[Convention]:
    """The conventions that the arguments allow."""
    allowed = [c for c in CONVENTIONS if scale in (c.scale, "auto") and embeddings in (c.embeddings, "auto")]
    if not allowed:
        raise UsageError(
            expected='scale "log", "linear" or "auto", and embeddings "unit", "raw" or "auto"',
            got=f"scale={scale!r}, embeddings={embeddings!r}",
            cause="there is no such convention",
            repair='scale="log", embeddings="unit"',
        )
    return allowed
