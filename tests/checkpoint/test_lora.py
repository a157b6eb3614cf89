"""LoRA adapters: in the file or beside it, merged as adapter_config.json says, or refused with the way to merge."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from saved import PARAMS, same, save, settings, tensors, write

import siglip_ref as sr
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.errors import UsageError

RNG = np.random.default_rng(3)
QUERY = "vision_model.encoder.layers.0.self_attn.q_proj"
POOL = "vision_model.head.attention.out_proj"  # torch's attention reads the weight alone: its adapters are never called
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


def matrices(weight, rank=2):
    """A and B for a weight, or for a kernel of four axes."""
    a = RNG.standard_normal((rank, *weight.shape[1:])).astype(np.float32)
    b = RNG.standard_normal((len(weight), rank, *(1 for _ in weight.shape[2:]))).astype(np.float32)
    return a, b


def adapt(found, modules, name=".default", rank=2):
    """The names that peft gives, and each weight as it is when merged with scale 3."""
    out, merged = dict(found), {}
    for module in modules:
        weight = out.pop(f"{module}.weight")
        a, b = matrices(weight, rank)
        out |= {
            f"{module}.base_layer.weight": weight,
            f"{module}.lora_A{name}.weight": a,
            f"{module}.lora_B{name}.weight": b,
        }
        if f"{module}.bias" in out:
            out[f"{module}.base_layer.bias"] = out.pop(f"{module}.bias")
        merged[module] = weight + 3 * (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(weight.shape)
    return out, merged


@pytest.fixture
def place(tmp_path):
    return save(tmp_path / "model")


def close(params, merged):
    query = params["image/block00/attn/q/kernel"].T
    return np.abs(query - merged[QUERY]).max() < 1e-5


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_adapters_in_the_file_are_merged(place, prefix):
    modules = (QUERY, POOL, "text_model.head", "vision_model.embeddings.patch_embedding")
    found, merged = adapt(tensors(place), modules)
    write(place, {prefix + name: value for name, value in found.items()})
    settings(place, "adapter_config.json", **CONFIG)
    checkpoint = load_checkpoint(place)
    assert close(checkpoint.params, merged) and any("LoRA: 4 weights" in note for note in checkpoint.notes)
    assert np.abs(checkpoint.params["image/pool/attn/out/kernel"].T - merged[POOL]).max() < 1e-5
    assert np.abs(checkpoint.params["text/head/kernel"].T - merged["text_model.head"]).max() < 1e-5
    kernel = merged["vision_model.embeddings.patch_embedding"].transpose(2, 3, 1, 0).reshape(48, 10)
    assert np.abs(checkpoint.params["image/patch/kernel"] - kernel).max() < 1e-5
    assert np.array_equal(checkpoint.params["image/norm/beta"], PARAMS["image/norm/beta"])


@pytest.mark.parametrize("where", ["beside the weights", "in a folder of their own"])
def test_adapters_in_a_file_of_their_own(place, tmp_path, where):
    """As peft's save_pretrained writes them: the folder names the model that they change."""
    found, merged = adapt(tensors(place), (QUERY,), name="")
    folder = place if where.startswith("beside") else tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{n}": v for n, v in found.items() if ".lora_" in n}, folder / "adapter_model.safetensors"
    )
    settings(folder, "adapter_config.json", **CONFIG, base_model_name_or_path=str(place))
    assert close(load_checkpoint(folder).params, merged)
    assert close(sr.load(folder / "adapter_model.safetensors").params, merged)


def test_scales_by_rank_and_pattern(place):
    found, merged = adapt(tensors(place), (QUERY, POOL))
    write(place, found)
    for extra in (
        {"r": 2, "lora_alpha": 3 * np.sqrt(2), "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 1,
            "rank_pattern": {"q_proj": 2, POOL: 2},
            "alpha_pattern": {"^q_proj": 6, "out_proj": 6},
        },
    ):
        settings(place, "adapter_config.json", **(CONFIG | extra))
        checkpoint = load_checkpoint(place)
        assert close(checkpoint.params, merged)
        assert np.abs(checkpoint.params["image/pool/attn/out/kernel"].T - merged[POOL]).max() < 1e-5


def test_embeddings_and_modules_trained_whole(place):
    found = tensors(place)
    token = "text_model.embeddings.token_embedding"
    a, b = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 29), (12, 2)))
    changed = found | {f"{token}.lora_embedding_A.default": a, f"{token}.lora_embedding_B.default": b}
    changed[f"{token}.base_layer.weight"] = changed.pop(f"{token}.weight")
    for part in ("weight", "bias"):
        whole = changed.pop(f"text_model.head.{part}")
        changed[f"text_model.head.original_module.{part}"] = whole
        changed[f"text_model.head.modules_to_save.default.{part}"] = whole + 1
    write(place, changed)
    settings(place, "adapter_config.json", **CONFIG)
    params = load_checkpoint(place).params
    assert np.abs(params["text/token"] - (found[f"{token}.weight"] + 3 * (b @ a).T)).max() < 1e-5
    assert np.array_equal(params["text/head/bias"], PARAMS["text/head/bias"] + 1)


def test_adapters_outside_the_towers_change_nothing(place):
    found = {f"model.vision_tower.{n}": v for n, v in tensors(place).items() if n.startswith("vision_model.")}
    a, b = np.ones((2, 5), np.float32), np.ones((5, 2), np.float32)
    language = {"model.lm.q_proj.lora_A.default.weight": a, "model.lm.q_proj.lora_B.default.weight": b}
    assert same(load_checkpoint(write(place, found | language)).params, "image/")


REFUSED = {
    "no settings": (None, lambda found: found),
    "DoRA": (CONFIG, lambda found: found | {f"{QUERY}.lora_magnitude_vector.default.weight": np.ones(10, np.float32)}),
    "use_dora": (CONFIG | {"use_dora": True}, lambda found: found),
    "LOHA": (CONFIG | {"peft_type": "LOHA"}, lambda found: found),
    "rank 2": (CONFIG | {"r": 4}, lambda found: found),
    "alpha nan": (CONFIG | {"lora_alpha": float("nan")}, lambda found: found),
    "both matrices": (CONFIG, lambda found: {n: v for n, v in found.items() if ".lora_B." not in n}),
    "one adapter": (CONFIG, lambda found: found | {n.replace("default", "b"): v for n, v in found.items()}),
    "names of modules": (CONFIG | {"alpha_pattern": {"(a+)+$": 1}}, lambda found: found),
    "that fit the weight": (
        CONFIG,
        lambda found: found | {f"{QUERY}.lora_B.default.weight": np.ones((9, 2), np.float32)},
    ),
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_is_not_simple_is_refused_with_the_way_to_merge(place, word):
    config, change = REFUSED[word]
    found, _ = adapt(tensors(place), (QUERY,))
    write(place, change(found))
    if config:
        settings(place, "adapter_config.json", **config)
    with pytest.raises(UsageError, match="merge_and_unload") as caught:
        load_checkpoint(place)
    assert word in str(caught.value) or word == "no settings"


def test_adapters_alone_without_their_model(tmp_path):
    save_file({f"{QUERY}.lora_A.weight": np.ones((2, 2), np.float32)}, tmp_path / "adapter_model.safetensors")
    for name in (None, str(tmp_path), 3):
        settings(tmp_path, "adapter_config.json", **CONFIG, base_model_name_or_path=name)
        with pytest.raises(UsageError, match="merge_and_unload"):
            load_checkpoint(tmp_path)
