"""The vectors themselves: what is asked, at which inputs, and why. Data; nothing is computed here.

Dimensions that do not belong together differ, every rank's data differs, no bias is zero, images are not square.
Loss vectors stand at probe points, not only at the initialisation: there the negatives carry under 1 % of the gradient.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.sizes import Config, Tower, config
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.process.data import read_toml
from siglip_ref.vectors import content_siglip2
from siglip_ref.vectors.draw import integers, numbers, parameters, partners, unit_rows

TINY = config("tiny")
# Hugging Face's and open_clip's classes have square images only.
SQUARE = replace(TINY, name="square", image_size=(20, 20))
# Another shape of everything, and no text head, as So400m i18n: D is the text tower's width.
ODD = Config("odd", Tower(12, 1, 13, 3), Tower(12, 2, 17, 2), (20, 8), 4, 23, 7, text_head=False)
LOG_TEN = 147 / 64  # log 10 is 2.3026, and 147 / 64 = 2.2969 is exact in bfloat16
PAD = 1

# flag: what it is for
FLAGS = read_toml(__file__, "flags")


@dataclass(frozen=True)
class Draft:
    """A vector before anything is computed."""

    id: str
    task: str
    comment: str
    arrays: Mapping[str, Array]
    flags: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.id.split("/")[0]


def drafts() -> Iterator[Draft]:
    """All vectors, in their order."""
    yield from _operations()
    yield from _losses()
    yield from _ranks()
    yield from _blocks()
    yield from _towers()
    yield from _models()
    yield from _accumulations()
    yield from _optimisers()
    yield from _trainings()
    yield from (Draft(*fields) for fields in content_siglip2.fields())


def _operations() -> Iterator[Draft]:
    def op(name: str, comment: str, *flags: str, op: str = "", **given: Any) -> Draft:
        arrays = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
        arrays |= prefixed("w", given.pop("w", {}))
        settings = {key: value for key, value in given.items() if not isinstance(value, np.ndarray)}
        settings["op"] = op or name.split("-")[0]
        return Draft(f"ops/{name}", "operation", comment, arrays, flags, settings)

    x, d_out = numbers("x", (3, 5, 14), 2.0), numbers("d", (3, 5, 14))
    norm: dict[str, Any] = {
        "gamma": 1 + integers("gamma", (14,), 24) / 64,
        "beta": numbers("beta", (14,), 0.5),
        "eps": 1e-6,
    }
    yield op("layer_norm", "At unit variance.", x=x, d_out=d_out, **norm)
    yield op("layer_norm-tiny", "Variance 1e-5.", "tiny activations", x=x / 256, d_out=d_out, **norm)
    linear: dict[str, Any] = {
        "x": numbers("lx", (2, 3, 7)),
        "kernel": numbers("lk", (7, 11)),
        "bias": numbers("lb", (11,)),
    }
    yield op("linear", "With bias.", **linear, d_out=numbers("ld", (2, 3, 11)))
    for form in ("tanh", "erf", "quick"):
        yield op(f"gelu-{form}", "From -4 to 4.", x=numbers("gx", (6, 8), 4.0), d_out=numbers("gd", (6, 8)), form=form)
    yield op("softmax", "Rows of six.", x=numbers("sx", (3, 4, 6), 4.0), d_out=numbers("sd", (3, 4, 6)))
    rows, d_rows = numbers("nx", (5, 9), 2.0), numbers("nd", (5, 9))
    for kind, eps in (("additive", 1e-8), ("none", 0.0), ("clamp", 1e-12)):
        yield op(f"normalize-{kind}", "Rows of length 3.", x=rows, d_out=d_rows, kind=kind, eps=eps)
    short: dict[str, Any] = {"x": rows / 8192, "d_out": d_rows, "kind": "additive", "eps": 1e-8}
    yield op("normalize-short", "Rows of length 0.0004: the added 1e-8 shows.", "tiny activations", **short)
    long = np.where(np.arange(5)[:, None] == 2, 256 * rows, rows)
    yield op("normalize-long", "One row of length 800.", "huge norm", x=long, d_out=d_rows, kind="none", eps=0.0)
    ids: dict[str, Any] = {"tokens": integers("pt", (4, 6), 4) + 5}
    for kind in ("last", "first", "mean", "argmax"):
        yield op(
            f"pool-{kind}", "Of six tokens.", x=numbers("px", (4, 6, 5)), **ids, d_out=numbers("pd", (4, 5)), kind=kind
        )
    patches: dict[str, Any] = {"kernel": numbers("pk", (48, 7), 0.5), "bias": numbers("pb", (7,)), "patch": 4}
    yield op(
        "patch_embed", "2 x 5 patches.", images=numbers("pi", (3, 8, 20, 3)), **patches, d_out=numbers("po", (3, 10, 7))
    )
    rim: dict[str, Any] = {"images": numbers("pr", (2, 11, 14, 3)), "d_out": numbers("pq", (2, 6, 7))}
    yield op("patch_embed-rim", "2 x 3 patches, and a rim of 3 and 2 pixels.", "rim", **rim, **patches)
    tokens: dict[str, Any] = {"tokens": integers("tt", (3, 5), 4) + 5, "table": numbers("tb", (11, 6))}
    yield op("token_embed", "15 tokens of 9 kinds.", "repeated tokens", **tokens, d_out=numbers("td", (3, 5, 6)))
    places = {"x": numbers("qx", (2, 5, 6)), "table": numbers("qt", (8, 6)), "d_out": numbers("qd", (2, 5, 6))}
    yield Draft("ops/position", "position", "Five of eight places.", places)

    weights = parameters(ODD, "ops weights")
    own, head = subtree(weights, "image/block00/attn"), subtree(weights, "image/pool")
    six, three = numbers("a6", (2, 6, 12)), numbers("a3", (2, 3, 12))
    attention: dict[str, Any] = {"w": own, "heads": 3}
    yield op("attention", "Self-attention.", x_query=six, x_key=six, d_out=numbers("ad", (2, 6, 12)), **attention)
    yield op(
        "attention-cross",
        "Three queries, six keys.",
        x_query=three,
        x_key=six,
        d_out=numbers("ae", (2, 3, 12)),
        **attention,
    )
    causal = np.tri(6, dtype=bool)
    yield op(
        "attention-mask", "Causal.", x_query=six, x_key=six, mask=causal, d_out=numbers("ad", (2, 6, 12)), **attention
    )
    sharp: dict[str, Any] = {
        "w": {n: 4 * v if n in ("q/kernel", "k/kernel") else v for n, v in own.items()},
        "heads": 3,
    }
    yield op("attention-sharp", "Scores up to 50.", x_query=six, x_key=six, d_out=numbers("ad", (2, 6, 12)), **sharp)
    mlp: dict[str, Any] = {
        "x": numbers("mx", (2, 3, 12)),
        "w": subtree(weights, "image/block00/mlp"),
        "d_out": numbers("md", (2, 3, 12)),
    }
    yield op("mlp", "Hidden width 13.", **mlp, gelu="tanh")
    pool: dict[str, Any] = {"x": numbers("hx", (4, 7, 12)), "w": head, "d_out": numbers("hd", (4, 12))}
    yield op("map_head", "Four images, seven tokens.", **pool, heads=3, gelu="tanh", eps=1e-6)


def _scalars(log_scale: float, bias: float) -> dict[str, Array]:
    return {"log_scale": np.array(log_scale), "bias": np.array(bias)}


def _balanced(pairs: int) -> dict[str, Array]:
    return _scalars(LOG_TEN, round(-math.log(pairs - 1) * 16) / 16)


POINTS = {"init": _scalars(LOG_TEN, -10.0), "trained": _scalars(151 / 32, -16.0)}


def _pairs(key: str, pairs: int, width: int) -> dict[str, Array]:
    """Unit rows; image i and text i have about half of their coordinates in common."""
    images = unit_rows(key, pairs, width)
    return {"image_embed": images, "text_embed": partners(images, key, (width + 1) // 2)}


def _losses() -> Iterator[Draft]:
    def loss(name: str, comment: str, *flags: str, **arrays: Array) -> Draft:
        return Draft(f"loss/{name}", "sigmoid_loss", comment, arrays, flags)

    for pairs, width, size in ((6, 13, "fewer pairs than dimensions"), (11, 5, "more pairs than dimensions")):
        embeddings = _pairs(f"loss {pairs}", pairs, width)
        for point, scalars in (POINTS | {"balanced": _balanced(pairs)}).items():
            yield loss(f"{point}-b{pairs}-d{width}", FLAGS[point], point, size, **embeddings, **scalars)
    embeddings = _pairs("saturated", 5, 9)
    wrong = embeddings | {"text_embed": -embeddings["image_embed"][::-1]}
    right = embeddings | {"text_embed": embeddings["image_embed"]}
    for name, pairs_ in (("right", right), ("wrong", wrong)):
        yield loss(
            f"saturated-{name}", f"Logits beyond 120, most {name}.", "saturated", **pairs_, **_scalars(5.25, -20.0)
        )
    yield loss(
        "saturated-bias", "A bias of 100: all negatives wrong.", "saturated", **embeddings, **_scalars(3.0, 100.0)
    )
    yield loss("one-pair", "No negatives.", "one pair", **_pairs("one", 1, 7), **_scalars(LOG_TEN, -2.5))
    twice = _pairs("twice", 7, 10)
    twice["text_embed"][3] = twice["text_embed"][5] = twice["text_embed"][1]
    yield loss(
        "duplicate-captions", "One caption three times.", "duplicate captions", "balanced", **twice, **_balanced(7)
    )
    yield loss("balanced-b40-d8", "A larger batch.", "balanced", **_pairs("large", 40, 8), **_balanced(40))
    beyond = _pairs("beyond", 4, 6)
    yield loss("beyond-float16", "Scale 76880.", "beyond float16", "saturated", **beyond, **_scalars(11.25, -20.0))
    blocks = {
        "own": (_pairs("own", 5, 8), np.eye(5, dtype=bool)),
        "remote": ({"image_embed": unit_rows("ri", 4, 8), "text_embed": unit_rows("rt", 7, 8)}, np.zeros((4, 7), bool)),
        "rows": ({"image_embed": unit_rows("ri", 3, 8), "text_embed": unit_rows("rt", 7, 8)}, np.eye(3, 7, 2, bool)),
    }
    for name, (rows, match) in blocks.items():
        arrays = rows | {"match": match} | _scalars(LOG_TEN, -1.5)
        yield Draft(f"loss/block-{name}", "pair_block", "One rectangular block of the loss.", arrays)


def _ranks() -> Iterator[Draft]:
    cases = (
        ("w2-init", (7, 7), POINTS["init"], "init"),
        ("w2-balanced", (7, 7), _balanced(14), "balanced"),
        ("w3-balanced", (4, 4, 4), _balanced(12), "balanced"),
        ("w3-uneven", (4, 6, 3), _balanced(13), "unequal shards"),
        ("w4-trained", (3, 3, 3, 3), POINTS["trained"], "trained"),
        ("w4-uneven", (3, 2, 6, 5), _balanced(16), "unequal shards"),
    )
    for name, sizes, scalars, flag in cases:
        arrays = dict(scalars)
        for rank, size in enumerate(sizes):
            shard = _pairs(f"ranks {name} {rank}", size, 9)
            arrays |= {f"{side}/rank{rank}": rows for side, rows in shard.items()}
        comment = f"{len(sizes)} ranks with {', '.join(map(str, sizes))} pairs; gradients of the loss of all pairs."
        yield Draft(f"ranks/{name}", "ranks", comment, arrays, (flag,))


def _accumulations() -> Iterator[Draft]:
    for cached, comment in ((False, "Each micro-batch has its own negatives."), (True, "Equal to one batch of 12.")):
        arrays: dict[str, Array] = dict(_balanced(12))
        for i in range(3):
            arrays |= {f"{side}/micro{i}": rows for side, rows in _pairs(f"micro {i}", 4, 9).items()}
        name = "cached" if cached else "plain"
        yield Draft(f"accumulation/{name}", "accumulation", comment, arrays, ("balanced",), {"cached": cached})


def _shrunk(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same weights with a residual stream 256 times smaller: a layer norm's eps shows in every block."""
    small = ("patch/kernel", "patch/bias", "position", "token", "/out/kernel", "/out/bias")
    return {name: value / 256 if name.endswith(small) else value for name, value in weights.items()}


def _blocks() -> Iterator[Draft]:
    weights = subtree(parameters(ODD, "block"), "image/block00")
    settings = {"heads": 3, "gelu": "tanh", "eps": 1e-6}
    base = {"x": numbers("bx", (2, 6, 12), 2.0), "d_out": numbers("bd", (2, 6, 12))}
    yield Draft("block/plain", "encoder_block", "Attention and MLP.", base | prefixed("w", weights), (), settings)
    tiny = base | {"x": base["x"] / 256} | prefixed("w", _shrunk(weights))
    yield Draft("block/tiny", "encoder_block", "A stream of 0.004.", tiny, ("tiny activations",), settings)
    masked = base | prefixed("w", weights) | {"mask": np.tri(6, dtype=bool)}
    yield Draft("block/mask", "encoder_block", "Causal, as other models.", masked, (), settings)


def _settings(cfg: Config, conventions: str = "big_vision") -> dict[str, Any]:
    record = content_siglip2.record_of(replace(cfg, conventions=PRESETS[conventions]))
    return {"conventions": record.pop("conventions"), "config": record}


def _captions(key: str, cfg: Config, lengths: tuple[int, ...]) -> Array:
    """Ids from 2 on, padded with 1 to the full length."""
    words = integers(key, (len(lengths), cfg.text_length), 10**6) % (cfg.vocabulary - 2) + 2
    return np.where(np.arange(cfg.text_length) < np.array(lengths)[:, None], words, PAD)


def _images(key: str, cfg: Config, count: int) -> Array:
    return numbers(key, (count, *cfg.image_size, 3))


def _towers() -> Iterator[Draft]:
    for name, cfg, preset, shrink, flags in (
        ("tiny-model", TINY, "big_vision", False, ()),
        ("odd-model", ODD, "big_vision", False, ()),
        ("erf", TINY, "open_clip", False, ("other convention",)),
        ("tiny-activations", TINY, "big_vision", True, ("tiny activations",)),
        ("bottleneck", replace(TINY, bottleneck=5), "big_vision", False, ()),  # of texts alone
    ):
        weights = parameters(cfg, f"towers {name}")
        weights = _shrunk(weights) if shrink else weights
        d_out = {"d_out": numbers(f"towers {name}", (3, cfg.embed))}
        settings = _settings(cfg, preset)
        image = {"images": _images(name, cfg, 3)} | d_out | prefixed("image", subtree(weights, "image"))
        if not cfg.bottleneck:
            yield Draft(f"image/{name}", "image_tower", "Pixels to a vector.", image, flags, settings)
        tokens = _captions(name, cfg, (cfg.text_length, 3, 5))
        text = {"tokens": tokens} | d_out | prefixed("text", subtree(weights, "text"))
        yield Draft(f"text/{name}", "text_tower", "Tokens to a vector.", text, (*flags, "padding"), settings)


def _model_arrays(key: str, cfg: Config, lengths: tuple[int, ...], scalars: Mapping[str, Array]) -> dict[str, Array]:
    arrays = prefixed("params", parameters(cfg, key) | dict(scalars))
    return arrays | {"images": _images(key, cfg, len(lengths)), "tokens": _captions(key, cfg, lengths)}


def _models() -> Iterator[Draft]:
    mixed, full = (9, 3, 5, 9, 2, 7, 1, 6), (9,) * 8
    for name, lengths, scalars, flags in (
        ("init", mixed, POINTS["init"], ("init", "padding")),
        ("balanced", mixed, _balanced(8), ("balanced", "padding")),
        ("trained", mixed, POINTS["trained"], ("trained", "padding")),
        ("full-length", full, _balanced(8), ("balanced", "full length")),
    ):
        arrays = _model_arrays("model", TINY, lengths, scalars)
        yield Draft(f"model/{name}", "model", "All gradients, eight pairs.", arrays, flags, _settings(TINY))
    arrays = _model_arrays("model", TINY, mixed, _balanced(8))
    square = _model_arrays("square", SQUARE, mixed, _balanced(8))
    for preset in ("huggingface", "open_clip"):
        other = ("balanced", "padding", "other convention")
        yield Draft(f"model/{preset}", "model", f"{preset}'s conventions.", square, other, _settings(SQUARE, preset))
    tokens = np.where(np.isin(np.arange(8), (2, 5))[:, None], arrays["tokens"][1], arrays["tokens"])
    twice = arrays | {"tokens": tokens}
    yield Draft(
        "model/duplicate-captions", "model", "One caption three times.", twice, ("duplicate captions",), _settings(TINY)
    )
    tiny = prefixed("params", _shrunk(subtree(arrays, "params"))) | {k: arrays[k] for k in ("images", "tokens")}
    yield Draft("model/tiny-activations", "model", "A stream of 0.004.", tiny, ("tiny activations",), _settings(TINY))
    odd = _model_arrays("odd", ODD, (7, 2, 4, 6, 3), _balanced(5))
    yield Draft("model/odd", "model", "Three heads, no text head, tall images.", odd, ("balanced",), _settings(ODD))


def _optimisers() -> Iterator[Draft]:
    shapes = {"tower/kernel": (5, 3, 4), "tower/bias": (7,), "locked/kernel": (6, 2), "bias": ()}
    for name, optimiser, reaches, rule, flags in (
        ("adamw", "adamw", (0.25, 4.0, 1.0), {"lr": 0.125, "decay": 0.25, "max_norm": 2.0}, ("frozen",)),
        ("adamw-tiny", "adamw", (2.0**-24,) * 3, {"lr": 0.125, "decay": 0.25}, ("frozen", "tiny gradients")),
        (
            "big_vision",
            "big_vision",
            (0.25, 4.0, 1.0),
            {"lr": 0.125, "decay": 0.0625, "smallest": 3, "max_norm": 2.0},
            ("frozen",),
        ),
        (
            "big_vision-full",
            "big_vision",
            (0.25, 4.0, 1.0),
            {"lr": 0.125, "decay": 0.0625, "max_norm": 2.0},
            ("frozen",),
        ),
    ):
        arrays = {f"params/{n}": numbers(f"p {n}", shape) + (n == "bias") * -8 for n, shape in shapes.items()}
        for k, reach in enumerate(reaches):
            arrays |= {f"grads{k}/{n}": numbers(f"g{k} {n}", shape, reach) for n, shape in shapes.items()}
        settings = {"optimiser": optimiser, "rule": rule, "frozen": ["locked/"], "steps": 3, "total": 8, "warmup": 2}
        yield Draft(f"steps/{name}", "optimiser", "Three steps with given gradients.", arrays, flags, settings)


def _trainings() -> Iterator[Draft]:
    # A key bias has gradient zero; what a program computes there is rounding noise, and an adaptive optimiser would
    # blow it up to full steps: so these are frozen.
    settings = _settings(TINY) | {"frozen": ["k/bias"], "steps": 3, "total": 8, "warmup": 1}
    for optimiser, rule in (
        ("adamw", {"lr": 0.0625, "decay": 0.125, "max_norm": 1.0, "eps": 2.0**-10}),
        ("big_vision", {"lr": 0.0625, "decay": 0.0625, "smallest": 3, "max_norm": 1.0, "eps": 2.0**-20}),
    ):
        arrays = prefixed("params", parameters(TINY, "training") | _balanced(4))
        for k in range(3):
            arrays |= {f"images{k}": _images(f"t{k}", TINY, 4), f"tokens{k}": _captions(f"t{k}", TINY, (9, 4, 2, 6))}
        comment = "Three steps of a model; key biases frozen, their gradient is rounding noise."
        own = settings | {"optimiser": optimiser, "rule": rule}
        yield Draft(f"steps/model-{optimiser}", "training", comment, arrays, ("frozen", "padding"), own)
