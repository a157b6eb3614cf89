"""check_loss: is a sigmoid loss right, and are its gradients?"""

from typing import Literal

from siglip_ref.check.arguments import declared_conventions, require_arguments, require_instance, setting_of
from siglip_ref.check.frameworks import framework_of, load_framework
from siglip_ref.check.in_numpy import random_states
from siglip_ref.check.loss_run import Loss, Progress, Run, run_check
from siglip_ref.check.probes import Dims
from siglip_ref.check.report import Report
from siglip_ref.check.truth import EmbeddingKind, ScaleKind


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
    require_instance(fn)
    require_arguments(fn)
    setting = setting_of(dtype, scalar_dtype, device, precision)
    declared = declared_conventions(scale, embeddings)
    loaded = load_framework(framework or framework_of(fn))
    with random_states(), loaded.environment(fn, setting):
        return run_check(Run(fn, loaded, setting, dims, progress), declared)
