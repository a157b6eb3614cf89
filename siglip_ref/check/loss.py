"""check_loss: is a sigmoid loss right, and are its gradients?"""

import inspect
from typing import Literal

from siglip_ref.check.frameworks import Setting, describe, framework_of, load_framework
from siglip_ref.check.in_numpy import random_states
from siglip_ref.check.loss_run import Loss, Progress, Run, run_check
from siglip_ref.check.probes import Dims
from siglip_ref.check.report import Report
from siglip_ref.check.tolerance import ARITHMETIC
from siglip_ref.check.truth import CONVENTIONS, Convention, EmbeddingKind, ScaleKind
from siglip_ref.errors import UsageError


def check_loss(
    fn: Loss | str,
    framework: str | None = None,
    dtype: object = "float32",
    device: str = "cpu",
    scale: ScaleKind | Literal["auto"] = "auto",
    embeddings: EmbeddingKind | Literal["auto"] = "auto",
    dims: Dims = None,
    scalar_dtype: object = "float32",
    precision: Literal["pure", "autocast"] = "pure",
    progress: Progress | None = None,
) -> Report:
    """Judge a sigmoid loss: its value and its four gradients, at points where every term of it is visible.

    Parameters
    ----------
    fn : fn(image_embed, text_embed, log_scale, bias) -> loss, a number; embeddings (B, D), row i of both belong
        together. In NumPy: returns the loss and its four gradients. A string names it: "module:name", "file.py:name"
    framework : "torch", "jax" or "numpy"; None: seen from the function
    dtype : "float64", "float32", "bfloat16" or "float16": of the products
    device : where the framework computes: "cpu", "cuda", ...
    scale : "log", fn exponentiates; "linear", fn is given exp(log_scale); "auto", found by trying
    embeddings : "unit", fn is given unit rows; "raw", fn normalises them; "auto", found by trying
    dims : multiples that a kernel needs, dict(batch=16, dim=32), or a list of (B, D)
    scalar_dtype : of scale and bias; they never have fewer bits than float64 embeddings
    precision : "pure", all in dtype; "autocast", embeddings in float32, products in dtype (Torch)
    progress : called with the name of each step

    Returns
    -------
    Report; `.raise_if_failed()` makes it a test. A probe that fn refuses stands in `.not_checked` with its reason.

    Raises
    ------
    UsageError : fn cannot be called this way, or its framework is not installed

    Notes
    -----
    What is allowed is SAFETY times the rounding noise of a correct program, see `siglip_ref.check.noise`. Random
    states, gradient and autocast modes and default dtypes are as before when it returns.

    Examples
    --------
    >>> import siglip_ref as sr
    >>> check_loss(sr.sigmoid_loss, framework="numpy", dtype="float64").verdict
    'PASS'
    """
    if isinstance(fn, str):
        from siglip_ref.check.target import load_callable

        fn = load_callable(fn)
    _require_callable(fn)
    setting = _setting(dtype, scalar_dtype, device, precision)
    declared = _declared(scale, embeddings)
    loaded = load_framework(framework or framework_of(fn))
    with random_states(), loaded.environment(fn, setting):
        return run_check(Run(fn, loaded, setting, dims, progress), declared)


def _require_callable(fn: object) -> None:
    """Four arguments by position; an instance, not a class."""
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
        signature.bind(None, None, None, None)
    except TypeError as cause:
        raise UsageError(
            expected="a loss with four arguments by position: image_embed, text_embed, log_scale, bias",
            got=f"{describe(fn)}{signature}",
            cause=f"another number of arguments ({cause})",
            repair="wrap it: lambda image, text, log_scale, bias: fn(...)",
        ) from None


def _setting(dtype: object, scalar_dtype: object, device: str, precision: str) -> Setting:
    name, scalar = _dtype_name(dtype, "dtype"), _dtype_name(scalar_dtype, "scalar_dtype")
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


def _dtype_name(dtype: object, argument: str) -> str:
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


def _declared(scale: str, embeddings: str) -> list[Convention]:
    """The conventions that the arguments allow."""
    allowed = [c for c in CONVENTIONS if scale in (c.scale, "auto") and embeddings in (c.embeddings, "auto")]
    if not allowed:
        raise UsageError(
            expected='scale "log", "linear" or "auto", and embeddings "unit", "raw" or "auto"',
            got=f"scale={scale!r}, embeddings={embeddings!r}",
            cause="there is no such convention",
            repair='check_loss(fn, scale="log", embeddings="unit")',
        )
    return allowed
