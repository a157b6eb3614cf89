"""check_loss: is a loss right, the sigmoid loss or CLIP's softmax loss, and are its gradients?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from siglip_ref.check.call.as_written import of_four, of_module, takes
from siglip_ref.check.call.frameworks import ARGUMENTS, framework_of, load_framework
from siglip_ref.check.call.held import put_back
from siglip_ref.check.call.target import called_by
from siglip_ref.check.engine.check import check
from siglip_ref.check.engine.expected.convention import LossKind, Positives, Reduction, Weights
from siglip_ref.check.engine.expected.expected import EmbeddingKind, ScaleKind
from siglip_ref.check.engine.expected.probes import Dims
from siglip_ref.check.engine.expected.repeated import Size
from siglip_ref.check.loss.arguments import (
    SIZES,
    declared_conventions,
    declared_objective,
    require_arguments,
    require_dims,
    require_instance,
    require_one_of,
    require_parameters,
    setting_of,
)
from siglip_ref.check.loss.subject import Loss, LossSubject, Progress
from siglip_ref.process.isolated import as_it_was
from siglip_ref.report.data import Report


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
    frozen: Sequence[str] = (),
    size: Size = "small",
    products: Literal["tf32", "bfloat16"] | None = None,
    explain: bool = False,
    loss: LossKind = "sigmoid",
    reduction: Reduction = "batch",
    bias: Literal["given"] | None = "given",
    positives: Positives = "own",
    weights: Weights = None,
    label_smoothing: float = 0.0,
    captions_per_image: int = 1,
    parameters: Mapping[str, str] | None = None,
) -> Report:
    """Judge a loss: its value and its four gradients, at points where every term of it is visible.

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
    frozen : inputs that need no gradient, ("image_embed",) for a locked image tower: fn is given them without one
    size : "small", up to 1,151 pairs; "real", 4,100 pairs besides. A batch that would take more than 20 s, or more than
        half of the free memory, is left out, which the report says
    products : "tf32" or "bfloat16", where float32 products round what goes into them on purpose
    explain : say of a right loss, too, what it computes (`.computes`, always there after a FAIL), from at most 20 more
        calls; and of a slow one that fails
    loss : "sigmoid", SigLIP's; "softmax", CLIP's, of three arguments, or with a bias, of which no gradient is asked
    reduction : "batch", the sum over all pairs divided by B; "mean", by B * B
    bias : None: fn takes none, fn(image_embed, text_embed, log_scale)
    positives : "own", row i of both; "ids", rows of equal ids: fn(image_embed, text_embed, log_scale, bias, ids);
        "captions", an image and every text that equals its own, which fn finds
    weights : "pairs", "rows" or "columns": fn is given (B, B) weights, or (B,) of images, or of texts, as its last
        argument; or two numbers, of positives and of negatives
    label_smoothing : labels are 1 - label_smoothing / 2 and label_smoothing / 2
    captions_per_image : k: text_embed has k B rows, rows k i to k i + k - 1 of image i; with ids fn is given those of
        the images and of the texts
    parameters : of a Torch module that holds them itself: {"temp": "log_scale", "b": "bias"}; each is "log_scale",
        "scale", "temperature" (1 / scale) or "bias". It is then called without them; of several results the loss counts

    Returns
    -------
    Report; `.raise_if_failed()` makes it a test. A probe that fn refuses stands in `.not_checked` with its reason.

    Raises
    ------
    UsageError : fn cannot be called this way, or its framework is not installed

    Notes
    -----
    What is allowed is SAFETY times the rounding noise of a correct program, see `siglip_ref.noise.measure`. The process
    and everything that fn holds are as before when it returns: see `siglip_ref.process.isolated` and
    `siglip_ref.check.call.held`.

    Examples
    --------
    >>> import siglip_ref as sr
    >>> check_loss(sr.sigmoid_loss, framework="numpy", dtype="float64").verdict
    'PASS'
    """
    fn = called_by(fn)
    require_instance(fn)
    has_bias = bias is not None if loss == "sigmoid" else takes(fn, 3) is False
    objective = declared_objective(loss, reduction, has_bias, positives, weights, label_smoothing, captions_per_image)
    if parameters is not None:
        scale = require_parameters(fn, parameters)
        objective = replace(objective, bias="bias" in parameters.values())
        require_arguments(fn.forward, (*ARGUMENTS[:2], *objective.extras))  # type: ignore[attr-defined]  # a module
    else:
        require_arguments(fn, (*ARGUMENTS[: 3 + objective.bias], *objective.extras))
    setting = setting_of(dtype, scalar_dtype, device, precision, frozen, products)
    require_one_of("size", size, SIZES)
    require_dims(dims)
    declared = declared_conventions(scale, embeddings, objective)
    loaded = load_framework(framework or framework_of(fn))
    called = of_module(fn, parameters) if parameters is not None else fn
    if not objective.bias or objective.extras:
        extras = [partial(objective.extra, name) for name in objective.extras]
        called = of_four(called, objective.bias, extras, loaded.name)
    if loss == "softmax" or not objective.bias:
        setting = setting.without("bias")
    with as_it_was(), loaded.environment(fn, setting), put_back(fn):
        return check(LossSubject(called, loaded, setting, declared, dims, progress, size, explain))
