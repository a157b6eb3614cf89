"""The commands `siglip-ref check NAME`: each is the Python function check_NAME, with the same arguments."""

from pathlib import Path
from typing import Annotated, Any

import typer

from siglip_ref.cli.judged import Converted, door
from siglip_ref.errors import UsageError

check = typer.Typer(no_args_is_help=True, help="Judge another implementation: its values and every gradient.")

Target = Annotated[str, typer.Argument(metavar="TARGET", help='"module:name" or "file.py:name"')]
Dtype = Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16")]
Framework = Annotated[str | None, typer.Option(help="torch, jax or numpy; else seen from the function")]
Scale = Annotated[str, typer.Option(help="log, linear or auto")]
Embeddings = Annotated[str, typer.Option(help="unit, raw or auto")]
Explain = Annotated[bool, typer.Option("--explain", help="say what a right loss computes, too")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(check, name="check")


@door(check, "loss")
def loss_options(
    fn: Target,
    dtype: Dtype = "float32",
    framework: Framework = None,
    scale: Scale = "auto",
    embeddings: Embeddings = "auto",
    dims: Annotated[str | None, typer.Option(help='multiples "batch=16,dim=32", or shapes "64x128,96x128"')] = None,
    scalar_dtype: Annotated[str, typer.Option(help="of scale and bias")] = "float32",
    precision: Annotated[str, typer.Option(help="pure or autocast")] = "pure",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    frozen: Annotated[list[str] | None, typer.Option(help="an input without gradient; may be repeated")] = None,
    size: Annotated[str, typer.Option(help="real: also 4,100 pairs; small: at most 1,151")] = "real",
    products: Annotated[str | None, typer.Option(help="tf32 or bfloat16: to which products round on purpose")] = None,
    loss: Annotated[str, typer.Option(help="sigmoid; softmax: CLIP's")] = "sigmoid",
    reduction: Annotated[str, typer.Option(help="batch: divided by B; mean: by B * B")] = "batch",
    bias: Annotated[bool, typer.Option("--bias/--no-bias", help="whether fn is given one")] = True,
    positives: Annotated[str, typer.Option(help="own; ids: equal ids, which fn gets; captions: equal texts")] = "own",
    weights: Annotated[str | None, typer.Option(help='pairs, rows or columns, which fn is given; or "3,1"')] = None,
    label_smoothing: Annotated[float, typer.Option(help="of labels 1 and 0")] = 0.0,
    captions_per_image: Annotated[int, typer.Option(help="text_embed has so many rows of each image")] = 1,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameters", "--parameter", help="temp=log_scale, of a module; may be repeated"),
    ] = None,
    explain: Explain = False,
) -> Converted:
    """Is a loss right: fn(image_embed, text_embed, log_scale, bias)?"""
    return dict(
        dims=read_dims(dims),
        frozen=frozen or (),
        bias="given" if bias else None,
        weights=read_weights(weights),
        parameters=read_parameters(parameters),
    )


@door(check, "ranks")
def ranks_options(
    fn: Target,
    world_size: Annotated[int, typer.Option(help="ranks; a second number of them is tried, too")] = 4,
    framework: Framework = None,
    reduce: Annotated[str, typer.Option(help="of gradients afterwards: mean, sum or none")] = "mean",
    value: Annotated[str, typer.Option(help="of each rank: local or global")] = "local",
    unequal: Annotated[bool, typer.Option("--unequal", help="ranks with different numbers of pairs, too")] = False,
    backend: Annotated[str, typer.Option(help="of torch.distributed")] = "gloo",
    setup: Annotated[
        str | None, typer.Option(help='"file.py:name", called on every rank before the first call')
    ] = None,
    dtype: Dtype = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    scale: Scale = "auto",
    embeddings: Embeddings = "auto",
    limit: Annotated[float, typer.Option(help="seconds for all calls of one number of ranks")] = 120.0,
    axis_name: Annotated[str | None, typer.Option(help="jax: of the axis of ranks")] = None,
    explain: Explain = False,
    loss: Annotated[str, typer.Option(help="sigmoid, or softmax: CLIP's")] = "sigmoid",
) -> Converted:
    """Is a loss over ranks right: fn(image_shard, text_shard, log_scale, bias, rank, world_size)?"""
    from siglip_ref.check.call.frameworks import framework_of
    from siglip_ref.check.call.target import load_callable

    loaded = load_callable(fn)
    framework = framework or framework_of(loaded, "check_ranks")
    converted = dict(fn=loaded, framework=framework, setup=load_callable(setup) if setup else None)
    if framework == "numpy":
        from mpi.comm import ThreadComm

        converted["ranks"] = ThreadComm.run
    return converted


@door(check, "model")
def model_options(
    model: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help='"module:name", "file.py:name", a saved directory, or hf:tiny, open_clip:ViT-B-16-SigLIP',
        ),
    ],
    dtype: Dtype = "float32",
    weights: Annotated[str, typer.Option(help="probe: deterministic ones; own: the model's")] = "probe",
    conventions: Annotated[
        str | None, typer.Option(help="huggingface, open_clip, big_vision: what it shall follow; else what it says")
    ] = None,
    batch: Annotated[int, typer.Option(help="pairs, at least 2")] = 4,
    up_to: Annotated[
        str | None, typer.Option(help="where a tower alone ends: pooled, last (hidden state), last-but-one (block)")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...: where a Torch model computes")] = None,
) -> Converted:
    """Is a model, or one tower of it, right: every activation, the loss, every parameter's gradient?"""


@door(check, "step")
def step_options(
    step_fn: Annotated[
        str,
        typer.Argument(metavar="TARGET", help='"module:name" or "file.py:name", a function that makes the arguments'),
    ],
) -> Converted:
    """Is a training step right: clip, weight decay, bias correction, schedule, accumulation, save and load?

    TARGET takes nothing and returns the arguments of siglip_ref.check_step as a dict: step_fn, rule, model, ...
    """


@door(check, "preprocess", case=False)
def preprocess_options(
    fn: Target,
    convention: Annotated[str, typer.Option(help="huggingface, huggingface-2, open_clip, big_vision")] = "huggingface",
    size: Annotated[str | None, typer.Option(help='what the model wants: "224", or height and width "224x256"')] = None,
) -> Converted:
    """Is what prepares a picture right: fn(a Pillow image) -> pixels, or NaFlex's patches?"""
    return dict(size=read_size(size))


@door(check, "tokenize", case=False)
def tokenize_options(
    fn: Target,
    convention: Annotated[
        str, typer.Option(help="huggingface (SigLIP), huggingface-2 (SigLIP 2), ...")
    ] = "huggingface",
    length: Annotated[int, typer.Option(help="of every row; So400m/14-224: 16")] = 64,
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece file or tokenizer.json: every id is compared")
    ] = None,
) -> Converted:
    """Is what turns texts into ids right: fn(a list of texts) -> rows of ids?"""


@door(check, "recipe", case=False)
def recipe_options(
    fn: Target,
    part: Annotated[
        str, typer.Argument(help="captions, local, mask, objective, steps, curation, or the id of a vector")
    ],
    framework: Annotated[str | None, typer.Option(help="torch or numpy; else seen from the function")] = None,
    dtype: Dtype = "float32",
) -> Converted:
    """Is a loss of SigLIP 2's recipe right: fn(inputs, settings)?"""


@door(check, "dump", case=False)
def dump_options(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=".safetensors or .npz with the vector's tensors")],
    vector: Annotated[str | None, typer.Option(help='its id; else the file\'s metadata "vector"')] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", "--arithmetic", help="what it was computed in; else the narrowest in the file"),
    ] = None,
    partial: Annotated[bool, typer.Option(help="judge what is there; else a missing tensor is a failure")] = False,
    probe: Annotated[Path | None, typer.Option(help="instead of a vector: the folder of `probe export`")] = None,
    forward_only: Annotated[
        bool, typer.Option("--forward-only", help="of a probe: no gradients, as engines run")
    ] = False,
    quantised: Annotated[
        bool, typer.Option("--quantised", help="of a probe: weights that are not in the file")
    ] = False,
) -> Converted:
    """Is what any program computed for a golden vector, or a probe, right? NumPy alone judges."""


@door(check, "checkpoint", case=False)
def checkpoint_options(
    path: Annotated[str, typer.Argument(metavar="MODEL", help="a directory, a file of weights, or a hub name")],
    photos: Annotated[
        list[Path] | None,
        typer.Option(
            "--photos", "--images", help="apple-ipod.jpg, then apple-blank.jpg: compares with recorded logits"
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help='a SentencePiece file, a tokenizer.json, or "bytes"')] = None,
    preprocess: Annotated[str, typer.Option(help="the recorded logits were made with big_vision's")] = "big_vision",
    prefix: Annotated[
        str | None,
        typer.Option(help='how the names begin of the model that is meant, where a file has several: "ema."'),
    ] = None,
) -> Converted:
    """Do a checkpoint's tensors fit its size, which file says what, and do its logits agree with those on record?"""


def read_dims(words: str | None) -> Any:
    """Multiples or shapes, as the command line writes them.

    >>> read_dims("batch=16,dim=32"), read_dims("64x128,96x128")
    ({'batch': 16, 'dim': 32}, [(64, 128), (96, 128)])
    """
    if words is None:
        return None
    try:
        if "=" in words:
            return {name.strip(): int(number) for name, number in (part.split("=") for part in words.split(","))}
        return [(int(pairs), int(width)) for pairs, width in (part.split("x") for part in words.split(","))]
    except ValueError:
        raise UsageError(
            expected='--dims "batch=16,dim=32" or --dims "64x128,96x128"',
            got=repr(words),
            cause="neither multiples nor shapes",
            repair='--dims "batch=16,dim=32"',
        ) from None


def read_weights(words: str | None) -> Any:
    """A word, or two numbers.

    >>> read_weights("rows"), read_weights("3,1")
    ('rows', (3.0, 1.0))
    """
    try:
        return tuple(float(number) for number in words.split(",")) if words and "," in words else words
    except ValueError:
        return words  # check_loss says itself what it takes


def read_parameters(words: list[str] | None) -> dict[str, str] | None:
    """Of a module, what each is.

    >>> read_parameters(["temp=log_scale", "b=bias"])
    {'temp': 'log_scale', 'b': 'bias'}
    """
    return {name: what for name, _, what in (word.partition("=") for word in words)} if words else None


def read_size(words: str | None) -> Any:
    """A side, or height and width.

    >>> read_size("224"), read_size("224x256")
    (224, (224, 256))
    """
    try:
        sides = tuple(int(side) for side in words.split("x")) if words else (None,)
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2):
        raise UsageError('--size "224" or --size "224x256"', repr(words), "not one or two whole numbers", "--size 224")
    return sides if len(sides) == 2 else sides[0]
