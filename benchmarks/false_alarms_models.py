"""Runs of right models: at golden vectors, judged as dumps are, and at probes, judged as `check_model` judges."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
from false_alarms_count import Trial, verdict_on
from false_alarms_seeds import HELD_OUT, model_order

from siglip_ref.architecture.sizes import Config, config_of
from siglip_ref.check.files.dump import judge as judge_dump
from siglip_ref.check.model.adapters import Adapter, Dtype, Run
from siglip_ref.check.model.adapters.find import adapter_for
from siglip_ref.check.model.judge import Judge, judged_rows, make_judge
from siglip_ref.check.model.probe import Probe, model_probe
from siglip_ref.check.model.reference import reference
from siglip_ref.check.model.subject import coarsest_of
from siglip_ref.model.two_towers import forward, loss_and_grads
from siglip_ref.ops.elementary import Array, subtree
from siglip_ref.vectors.store import Vector, packaged

ROOT = Path(__file__).parents[1]
DRAWN = ((HELD_OUT, 4), (HELD_OUT + 1, 7), (HELD_OUT + 2, 3))  # probes: seed of their weights, pairs


@dataclass(frozen=True)
class Specification:
    """The reference, with the specification's operations or with the fast ones, behind the interface of models."""

    config: Config
    ops: Any
    name: str = "the reference"

    def parameters(self, dtype: Dtype) -> dict[str, Array]:
        raise NotImplementedError  # probes bring their weights; the reference has none of its own

    def run(self, params: Mapping[str, Array], images: Array, tokens: Array, dtype: Dtype) -> Run:
        given, pixels = {name: value.astype(dtype) for name, value in params.items()}, images.astype(dtype)
        values = forward(given, pixels, tokens, self.config, ops=self.ops, activations=True).activations
        loss, grads = loss_and_grads(given, pixels, tokens, self.config, ops=self.ops)
        return Run(loss, dict(values), dict(grads))


def _specification(package: str, cfg: Config) -> Adapter:
    return Specification(cfg, import_module(package))


def _hugging_face(attention: str, cfg: Config) -> Adapter:
    from transformers import SiglipModel

    from siglip_ref.check.model.adapters.huggingface import make_config

    return adapter_for(SiglipModel._from_config(make_config(cfg), attn_implementation=attention))


def _open_clip(cfg: Config) -> Adapter:
    """Its own text tower, and timm's image tower."""
    from no_torchvision import import_open_clip

    open_clip, timm = import_open_clip()

    def vit_of_false_alarms(
        pretrained: bool = False, num_classes: int = 0, global_pool: str = "map", **others: Any
    ) -> Any:
        return timm.models.vision_transformer.VisionTransformer(
            cfg.image_size, cfg.patch, embed_dim=cfg.embed, depth=cfg.image.depth, num_heads=cfg.image.heads,
            mlp_ratio=cfg.image.mlp / cfg.embed, class_token=False, num_classes=num_classes, global_pool=global_pool,
        )  # fmt: skip

    vit_of_false_alarms.__module__ = "timm.models.vision_transformer"
    if "vit_of_false_alarms" not in timm.models.list_models("vit_of*"):
        timm.models.register_model(vit_of_false_alarms)
    vision = {"timm_model_name": "vit_of_false_alarms", "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": cfg.text_length, "vocab_size": cfg.vocabulary, "width": cfg.text.width}
    text |= {"heads": cfg.text.heads, "layers": cfg.text.depth, "mlp_ratio": cfg.text.mlp / cfg.text.width + 1e-3}
    siglip = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    vision |= {"image_size": cfg.image_size}
    return adapter_for(open_clip.CustomTextCLIP(cfg.embed, vision, text | siglip, init_logit_bias=-10))


def _torch_layers(cfg: Config) -> Adapter:
    """The worked example of torch's own encoder layers, here with big_vision's norm of the embeddings."""
    example = _example("check_torch_model")

    class Model(example.MyModel):
        def forward(self, images: Any, tokens: Any) -> Any:
            rows = self.image(images), self.text(tokens)
            image, text = (x / (x.norm(dim=-1, keepdim=True) + 1e-8) for x in rows)
            return image, text, self.log_scale.exp() * image @ text.T + self.bias

    return replace(example.model(), model=Model(), config=cfg)


def _jax_tree(cfg: Config) -> Adapter:
    """The worked example in JAX, on a tree of this size; compiled once, not for every run.

    Its layer norm computes in float32, as Flax's does: in float16 the derivative of rsqrt overflows at a variance of
    1e-5, and the NaN that follow are rightly flagged (at model/tiny-activations).
    """
    import jax.numpy as jnp

    import siglip_ref as sr
    from siglip_ref.check.model.adapters.big_vision import BigVision
    from siglip_ref.checkpoint.save import save_checkpoint

    tree: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        saved = dict(np.load(save_checkpoint(Path(folder) / "m.npz", sr.init(cfg), cfg, "big_vision")))
    for path, value in saved.items():
        *above, last = path.removeprefix("params/").split("/")
        place = tree
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    example = _example("check_jax_model")
    in_its_dtype = example.layer_norm

    def layer_norm(x: Any, p: Any) -> Any:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return in_its_dtype(x.astype(wide), {name: value.astype(wide) for name, value in p.items()}).astype(x.dtype)

    example.layer_norm = layer_norm

    class Compiled(BigVision):
        compiled = cache(BigVision.compiled)

    return Compiled(example.loss_fn, tree, image_size=cfg.image_size, conventions=cfg.conventions)


def _example(name: str) -> Any:
    spec = spec_from_file_location(f"false_alarms_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# by name: how it is made, and the conventions of the golden vectors that it answers
MODELS: dict[str, tuple[Callable[[Config], Adapter], str]] = {
    "Hugging Face, sdpa": (partial(_hugging_face, "sdpa"), "huggingface"),
    "Hugging Face, eager": (partial(_hugging_face, "eager"), "huggingface"),
    "open_clip": (_open_clip, "open_clip"),
    "torch encoder layers": (_torch_layers, "big_vision"),
    "JAX": (_jax_tree, "big_vision"),
    "reference, NumPy": (partial(_specification, "siglip_ref.ops"), "big_vision"),
    "fast, NumPy": (partial(_specification, "siglip_ref.fast"), "big_vision"),
}
NEW = ("reference, NumPy", "fast, NumPy")
DTYPES: tuple[Dtype, ...] = ("float64", "float32", "bfloat16", "float16")


def dtypes_of(name: str) -> tuple[Dtype, ...]:
    """NumPy computes in these two."""
    return DTYPES[:2] if name.endswith("NumPy") else DTYPES


def runs(name: str, dtype: Dtype, least: int, probes: int = len(DRAWN)) -> Iterator[Trial]:
    """At least `least` runs: a half at golden vectors (where the model computes in that dtype throughout), the rest
    at drawn probes."""
    sys.path.append(str(ROOT / "tests" / "interop"))
    make, conventions = MODELS[name]
    vectors = [v for v in packaged().vectors.values() if v.task == "model" and v.conventions["name"] == conventions]
    vectors = [v for v in vectors if _config(v).name in ("tiny", "square")]
    cfg = _config(vectors[0])
    adapter = make(cfg)
    if "torch" in sys.modules:
        import_module("torch").set_num_threads(1)
    coarsest = coarsest_of(adapter, dtype)
    golden = [] if coarsest != dtype else [(v.id, partial(_golden, adapter, v, dtype)) for v in vectors]
    drawn = [(f"probe {s}, {b} pairs", partial(_probe, adapter, s, b, dtype, coarsest)) for s, b in DRAWN[:probes]]
    for chosen, wanted in ((golden, least // 2), (drawn, least - least // 2 if golden else least)):
        some = chosen[:wanted]
        for seed in range(HELD_OUT, HELD_OUT + -(-wanted // len(some)) if some else HELD_OUT):
            for vector, run in some:
                yield Trial(f"model: {name}", dtype, vector, seed, name not in NEW, *run(seed))


def _config(vector: Vector) -> Config:
    return config_of(vector.all_settings["config"], vector.all_settings["conventions"])


def _golden(adapter: Adapter, vector: Vector, dtype: Dtype, seed: int) -> Any:
    probe = Probe(subtree(vector.inputs, "params"), vector.inputs["images"], vector.inputs["tokens"])
    run = _ordered(adapter, _config(vector), probe, dtype, seed)
    got = {"loss": run.loss} | run.activations | {f"d/{name}": value for name, value in run.grads.items()}
    got = {name: np.asarray(value) for name, value in got.items() if name in vector.expected}
    report = judge_dump(vector, got, dtype, "", partial=True)  # gradients of activations are not there
    return report.details, report.verdict


def _probe(adapter: Adapter, drawn: int, pairs: int, dtype: Dtype, coarsest: Dtype, seed: int) -> Any:
    probe, judge = _judge(adapter.config, drawn, pairs, dtype, coarsest)
    rows = judged_rows(_ordered(adapter, adapter.config, probe, dtype, seed), judge)
    return rows, verdict_on(rows)


def _ordered(adapter: Adapter, cfg: Config, probe: Probe, dtype: Dtype, seed: int) -> Run:
    """The model on the probe in another order, its answer in the probe's own."""
    order = model_order(seed, cfg, len(probe.images))
    params = {name: np.asarray(order.there(name, np.asarray(value))) for name, value in probe.params.items()}
    batch = order.orders["batch"]
    return order.run(adapter.run(params, np.array(probe.images[batch]), np.array(probe.tokens[batch]), dtype))


@lru_cache(maxsize=256)
def _judge(cfg: Config, drawn: int, pairs: int, dtype: Dtype, coarsest: Dtype) -> tuple[Probe, Judge]:
    """Weights, images and captions of `check_model`, shuffled; what is right there, what is allowed."""
    rng = np.random.default_rng(drawn)
    plain = model_probe(cfg, pairs, dtype)
    params = {name: rng.permutation(np.ravel(value)).reshape(np.shape(value)) for name, value in plain.params.items()}
    others = np.arange(cfg.vocabulary)
    others[2:] = rng.permutation(others[2:])  # padding stays padding
    probe = Probe(params, rng.permutation(plain.images, 1), others[plain.tokens])
    exact = reference(probe, cfg, cfg.conventions, np.float64)
    return probe, make_judge(exact, probe, cfg, cfg.conventions, dtype, coarsest)
