"""big_vision's .npz in all its forms, written here tensor by tensor as its own code lays them out."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint

CFG = replace(sr.config("tiny"), image_size=(20, 20))


def flax_attention(params, ours, heads):
    """Kernels (W, H, h) and back, biases (H, h)."""
    width = len(params[f"{ours}/q/bias"])
    for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
        yield f"{long}/kernel", params[f"{ours}/{short}/kernel"].reshape(width, heads, width // heads)
        yield f"{long}/bias", params[f"{ours}/{short}/bias"].reshape(heads, width // heads)
    yield "out/kernel", params[f"{ours}/out/kernel"].reshape(heads, width // heads, width)
    yield "out/bias", params[f"{ours}/out/bias"]


def flax_norm_and_mlp(params, norm, mlp, number):
    """LayerNorm_i and MlpBlock_0."""
    yield f"LayerNorm_{number}/scale", params[f"{norm}/gamma"]
    yield f"LayerNorm_{number}/bias", params[f"{norm}/beta"]
    for ours, theirs in (("in", "Dense_0"), ("out", "Dense_1")):
        yield f"MlpBlock_0/{theirs}/kernel", params[f"{mlp}/{ours}/kernel"]
        yield f"MlpBlock_0/{theirs}/bias", params[f"{mlp}/{ours}/bias"]


def flax_block(params, ours, heads):
    """One encoder block."""
    yield "LayerNorm_0/scale", params[f"{ours}/norm1/gamma"]
    yield "LayerNorm_0/bias", params[f"{ours}/norm1/beta"]
    for name, value in flax_attention(params, f"{ours}/attn", heads):
        yield f"MultiHeadDotProductAttention_0/{name}", value
    yield from flax_norm_and_mlp(params, f"{ours}/norm2", f"{ours}/mlp", 1)


def flax_tree(params, cfg, stacked):
    """Every tensor under big_vision's name."""
    tree = {
        "img/embedding/kernel": params["image/patch/kernel"].reshape(cfg.patch, cfg.patch, 3, -1),
        "img/embedding/bias": params["image/patch/bias"],
        "img/pos_embedding": params["image/position"][None],
        "img/MAPHead_0/probe": params["image/pool/probe"][None, None],
        "txt/Embed_0/embedding": params["text/token"],
        "txt/pos_embedding": params["text/position"][None],
        "txt/head/kernel": params["text/head/kernel"],
        "txt/head/bias": params["text/head/bias"],
        "t": params["log_scale"][None],
        "b": params["bias"][None],
    }
    for name, value in flax_attention(params, "image/pool/attn", cfg.image.heads):
        tree[f"img/MAPHead_0/MultiHeadDotProductAttention_0/{name}"] = value
    for name, value in flax_norm_and_mlp(params, "image/pool/norm", "image/pool/mlp", 0):
        tree[f"img/MAPHead_0/{name}"] = value
    for tower, encoder, heads in (("image", "img/Transformer", 2), ("text", "txt/Encoder_0", 2)):
        tree[f"{encoder}/encoder_norm/scale"] = params[f"{tower}/norm/gamma"]
        tree[f"{encoder}/encoder_norm/bias"] = params[f"{tower}/norm/beta"]
        blocks = [dict(flax_block(params, f"{tower}/block{i:02d}", heads)) for i in range(2)]
        for name in blocks[0]:
            if stacked:
                tree[f"{encoder}/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
            else:
                tree |= {f"{encoder}/encoderblock_{i}/{name}": block[name] for i, block in enumerate(blocks)}
    return tree


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("prefix", ["", "params/"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_form_gives_the_same_parameters(tmp_path, stacked, prefix, save):
    params = sr.init(CFG, seed=4)
    save(tmp_path / "m.npz", **{prefix + name: value for name, value in flax_tree(params, CFG, stacked).items()})
    checkpoint = load_checkpoint(tmp_path / "m.npz", np.float64)
    assert checkpoint.config == replace(CFG, name=checkpoint.config.name)
    assert list(checkpoint.params) == list(params)
    assert all(np.array_equal(checkpoint.params[name], params[name]) for name in params)
    assert all(checkpoint.params[name].shape == params[name].shape for name in params)


def test_bfloat16_stored_as_two_bytes_of_nothing_is_exact(tmp_path):
    tree = flax_tree(sr.init(CFG, seed=4), CFG, True)
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in tree.items()}
    np.savez(tmp_path / "m.npz", **{name: value.view("V2") for name, value in rounded.items()})
    params = load_checkpoint(tmp_path / "m.npz").params
    expected = rounded["img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel"][1].astype(np.float32)
    assert np.array_equal(params["image/block01/mlp/out/kernel"], expected)


def test_an_early_second_table_of_positions_is_added(tmp_path):
    params = sr.init(CFG, seed=4)
    second = np.random.default_rng(1).standard_normal((1, *params["text/position"].shape))
    np.savez(tmp_path / "m.npz", **flax_tree(params, CFG, False), **{"txt/Encoder_0/pos_embedding": second})
    loaded = load_checkpoint(tmp_path / "m.npz", np.float64).params
    assert np.array_equal(loaded["text/position"], params["text/position"] + second[0])


def test_what_we_save_is_what_their_code_lays_out(tmp_path):
    params = sr.init(CFG, seed=4)
    with np.load(save_checkpoint(tmp_path / "m.npz", params, CFG, "big_vision")) as saved:
        expected = flax_tree(params, CFG, False)
        assert set(saved) == set(expected)
        assert all(
            np.array_equal(saved[name], value) and saved[name].shape == value.shape for name, value in expected.items()
        )


def test_naflex_round_trip(tmp_path):
    cfg = replace(CFG, naflex=True)
    params = sr.init(cfg, seed=4)
    file = save_checkpoint(tmp_path / "m.npz", params, cfg, "big_vision")
    with np.load(file) as saved:
        assert saved["img/embedding/kernel"].shape == (48, 10) and saved["img/pos_embedding"].shape == (5, 5, 10)
    checkpoint = load_checkpoint(file, np.float64)
    assert checkpoint.config.naflex
    assert all(np.array_equal(checkpoint.params[name], params[name]) for name in params)
