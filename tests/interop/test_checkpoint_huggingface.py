"""Models that transformers built and saved, loaded here; ours saved, loaded by transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoint_parity import randomise, require_parity
from models import TINY, hugging_face
from safetensors.torch import load_file, save_file
from transformers import Siglip2Config, Siglip2Model, SiglipModel

import siglip_ref as sr
from siglip_ref.architecture.params import count
from siglip_ref.check.model.adapters.find import load_target
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_saved_model_is_the_same_here(tmp_path, shard):
    model = randomise(hugging_face())
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (shard == "20KB") == (len(list(tmp_path.glob("*.safetensors"))) > 1)
    require_parity(model, load_checkpoint(tmp_path, np.float64))


def test_other_activations_and_eps_are_read_from_its_settings(tmp_path):
    model = randomise(hugging_face(hidden_act="gelu", layer_norm_eps=3e-3))
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, np.float64)
    assert (checkpoint.config.conventions.image_gelu, checkpoint.config.conventions.text_norm_eps) == ("erf", 3e-3)
    require_parity(model, checkpoint)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_precision_is_kept_exactly(tmp_path, dtype):
    model = randomise(hugging_face()).to(dtype)
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    stored = model.state_dict()["text_model.encoder.layers.1.mlp.fc1.weight"].float().numpy()
    assert checkpoint.params["text/block01/mlp/in/kernel"].dtype == np.float32
    assert np.array_equal(checkpoint.params["text/block01/mlp/in/kernel"], stored.T)


def test_float32_weights_are_mapped_and_not_copied(tmp_path):
    randomise(hugging_face()).float().save_pretrained(tmp_path)
    params = load_checkpoint(tmp_path).params

    def mapped(array):
        while array is not None and not isinstance(array, np.memmap):
            array = array.base
        return array is not None

    # a patch kernel's axes change places, which no view can express; everything else is the file's own pages
    assert [name for name in params if not mapped(params[name])] == ["image/patch/kernel"]


def test_torch_files_are_read_without_running_them(tmp_path):
    model = randomise(hugging_face())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    require_parity(model, load_checkpoint(tmp_path, np.float64))


def test_a_saved_directory_is_checked_with_its_own_weights(tmp_path):
    saved = randomise(hugging_face()).float()
    saved.save_pretrained(tmp_path)
    model = load_target(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
    assert sr.check_model(model, weights="own").passed
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("logit_bias")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(sr.UsageError, match="no logit_bias"):
        load_target(str(tmp_path))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(sr.UsageError, match="check checkpoint"):
        load_target(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(sr.UsageError, match=r"config\.json"):
        load_target(str(tmp_path))


@pytest.mark.parametrize("shard", [10**9, 30_000])
def test_transformers_loads_what_we_save(tmp_path, shard):
    params = sr.init(TINY, seed=3)
    save_checkpoint(tmp_path, params, replace(TINY, conventions=sr.preset("huggingface")), shard=shard)
    model, info = SiglipModel.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    checkpoint = load_checkpoint(tmp_path, np.float64)
    assert all(np.array_equal(checkpoint.params[name], params[name]) for name in params)
    require_parity(model, checkpoint)


def test_a_model_without_text_head_is_stored_as_one_with_the_identity(tmp_path):
    cfg = replace(TINY, text=TINY.image, text_head=False, conventions=sr.preset("huggingface"))
    params = sr.init(cfg, seed=3)
    save_checkpoint(tmp_path, params, cfg)
    model = SiglipModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(model.text_model.head.weight, torch.eye(cfg.embed, dtype=torch.float64))
    checkpoint = load_checkpoint(tmp_path, np.float64)
    assert not checkpoint.config.text_head and "identity" in checkpoint.notes[0]
    assert sum(array.size for array in checkpoint.params.values()) == count(cfg)


def naflex():
    """A small Siglip2Model."""
    image = {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 20, "num_attention_heads": 2}
    patches = {"patch_size": 2, "num_patches": 25}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 10, "num_attention_heads": 2}
    words = {"vocab_size": 40, "max_position_embeddings": 7, "projection_size": 12}
    return Siglip2Model(Siglip2Config(vision_config=image | patches, text_config=text | words))


def test_a_naflex_model_is_loaded_and_saved(tmp_path):
    model = randomise(naflex())
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = load_checkpoint(tmp_path / "theirs", np.float64)
    assert checkpoint.config.naflex and checkpoint.config.grid == (5, 5)
    save_checkpoint(tmp_path / "ours", checkpoint.params, checkpoint.config)
    again = Siglip2Model.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    own, back = model.state_dict(), again.state_dict()
    assert own.keys() == back.keys() and all(torch.equal(own[name], back[name]) for name in own)
