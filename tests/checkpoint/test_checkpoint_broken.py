"""Files that are broken, foreign or hostile: each ends in a UsageError that names the trouble, and runs nothing."""

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import siglip_ref as sr
from siglip_ref.checkpoint.formats import files
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.errors import UsageError

CFG = replace(sr.config("tiny"), image_size=(20, 20), conventions=sr.preset("huggingface"))


@pytest.fixture
def place(tmp_path):
    """A whole Hugging Face directory."""
    return save_checkpoint(tmp_path / "model", sr.init(CFG, seed=1), CFG)


def change(place, **tensors):
    """Replace tensors in the file; None takes one away."""
    file = place / "model.safetensors"
    kept = load_file(file) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in kept.items() if value is not None}, file)


def refused(path, *words, **options):
    """The error, which must hold these words."""
    with pytest.raises(UsageError) as caught:
        load_checkpoint(path, **options)
    said = str(caught.value).replace(str(path), "")  # the path holds the test's own name
    for word in words:
        assert word in said, caught.value


@pytest.mark.parametrize("keep", [0, 5, 300, -1, -1000])
def test_truncated_safetensors(place, keep):
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(place, "download")


def test_a_header_that_claims_a_terabyte(place):
    (place / "model.safetensors").write_bytes(struct.pack("<Q", 10**12) + b"{}" * 50)
    refused(place, "download it again")


def test_tensors_that_overlap_or_lie_outside(place):
    for offsets in ([0, 400], [-8, 392], [0, 40]):
        header = json.dumps({"a": {"dtype": "F32", "shape": [10, 10], "data_offsets": offsets}}).encode()
        (place / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(80))
        refused(place, "download it again")


def test_a_git_lfs_pointer(place):
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(place, "git-lfs pointer")


def test_a_tensor_of_another_shape(place):
    change(place, text_model__head__weight=np.zeros((10, 11)))
    refused(place, "text_model.head.weight (10, 11), not (10, 12)")


def test_a_transposed_tensor(place):
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    change(place, **{name: np.ascontiguousarray(load_file(place / "model.safetensors")[name].T)})
    refused(place, name, "(10, 13), not (13, 10)")


def test_a_missing_tensor(place):
    change(place, logit_bias=None)
    refused(place, "missing: logit_bias")


def test_a_tensor_too_many(place):
    change(place, lora__weight=np.zeros(3))
    refused(place, "left over: lora.weight")


def test_settings_that_are_missing_broken_or_of_another_model(place):
    good = json.loads((place / "config.json").read_text())
    for content in ("", "[1, 2]", "{" * 100_000, json.dumps(good | {"vision_config": {"hidden_size": 768}})):
        (place / "config.json").write_text(content)
        refused(place)
    (place / "config.json").unlink()
    refused(place, "config.json", "copy the whole directory")


def test_a_model_that_is_not_siglip(place):
    save_file({"transformer.h.0.weight": np.zeros(3)}, place / "model.safetensors")
    refused(place, "transformer.h.0.weight", "another model")


def test_shards(place):
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    refused(place, "files beside the index")
    index.write_text(json.dumps({"weight_map": {"a": "model-00002.safetensors"}}))
    refused(place, "model-00002.safetensors", "incomplete download")
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    refused(place, "a shard without it")
    index.write_text(json.dumps({"weight_map": ["a"]}))
    refused(place, "weight_map")


class Mine:
    """What unpickling would run."""

    def __reduce__(self):
        return os.mkdir, (os.environ["SIGLIP_REF_PICKLE_PROOF"],)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pt", "evil.bin", "evil.pth", "evil.npz"])
def test_a_pickle_is_never_executed(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SIGLIP_REF_PICKLE_PROOF", str(tmp_path / "ran"))
    content = pickle.dumps(Mine())
    if name.endswith("npz"):
        array = io.BytesIO()
        np.save(array, np.array([Mine()], object), allow_pickle=True)
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("img/embedding/bias.npy", array.getvalue())
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(tmp_path / name)
    assert "pickle" in caught.value.cause
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)  # it would have run
    assert (tmp_path / "ran").exists()


def npy(header, data=b""):
    """An .npy file with a header of our choice."""
    text = repr(header).encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"not an array",
        npy({"descr": "<f4", "fortran_order": False, "shape": (10**12,)}),
        npy({"descr": "<f4", "fortran_order": False, "shape": (-5,)}, bytes(100)),
        npy({"descr": "<f4", "fortran_order": False, "shape": (10**30, 10**30)}),
        npy({"descr": "|O", "fortran_order": False, "shape": (1,)}, bytes(100)),
        npy({"descr": "|S100", "fortran_order": False, "shape": (1,)}, bytes(100)),
    ],
)
def test_an_npz_that_lies(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("img/embedding/kernel.npy", member)
    refused(tmp_path / "m.npz")


def test_a_bomb_is_refused_before_it_goes_off(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CAP", 10**6)
    np.savez_compressed(tmp_path / "m.npz", **{"img/embedding/kernel": np.zeros((4, 4, 3, 10**5), np.float32)})
    assert (tmp_path / "m.npz").stat().st_size < 10**5
    refused(tmp_path / "m.npz", "at most 1,000,000 bytes")


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_truncated_npz(tmp_path, keep):
    file = save_checkpoint(tmp_path / "m", sr.init(CFG), CFG, "big_vision")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    refused(file, "download it again")


def test_a_damaged_member(tmp_path):
    """The archive's list is whole and so is every header, but one array is not: its checksum says so."""
    cfg = replace(CFG, vocabulary=9_000)
    file = save_checkpoint(tmp_path / "m", sr.init(cfg), cfg, "big_vision")
    content = bytearray(file.read_bytes())
    content[content.index(b"txt/Embed_0/embedding") + 500_000] ^= 255
    file.write_bytes(content)
    refused(file, "Bad CRC-32", "download it again")


def test_paths(tmp_path):
    refused(tmp_path / "nothing", "check the path")
    refused(tmp_path, "none", "incomplete download")
    np.savez(tmp_path / "a.npz", a=1)
    np.savez(tmp_path / "b.npz", a=1)
    refused(tmp_path, "2 files of weights")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    refused(tmp_path / "weights.onnx", ".onnx", "another format")


def test_a_hub_name_without_a_hub(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(
        "google/siglip-base-patch16-256",
        "pip install huggingface_hub, then: hf download",
        "--local-dir siglip-base-patch16-256",
    )


@pytest.mark.parametrize("format", ["huggingface", "big_vision"])
def test_any_damage_ends_in_an_explanation_or_changes_nothing_but_numbers(tmp_path, format):
    """A thousand damaged files: bytes changed, cut out, put in; never another exception than UsageError."""
    cfg = replace(CFG, vocabulary=3)
    file = save_checkpoint(tmp_path / "m", sr.init(cfg, seed=1), cfg, format)
    file = file / "model.safetensors" if file.is_dir() else file
    whole, rng, refusals = file.read_bytes(), np.random.default_rng(9), 0
    header = 8 + int.from_bytes(whole[:8], "little") if format == "huggingface" else len(whole)
    for _ in range(500):
        content = bytearray(whole)
        at = int(rng.integers(header))
        match rng.integers(3):
            case 0:
                content[at] = rng.integers(256)
            case 1:
                del content[at : at + int(rng.integers(1, 40))]
            case 2:
                content[at:at] = rng.bytes(int(rng.integers(1, 40)))
        file.write_bytes(content)
        try:
            assert load_checkpoint(file, np.float64).params.keys() == sr.init(cfg).keys()
        except UsageError:
            refusals += 1
    assert refusals > 200


@pytest.mark.parametrize("value", [None, "x", -1, 0, [], {}, 1.5, True, 10**12, float("nan")])
def test_settings_with_nonsense_in_one_place(place, value):
    """Every field of config.json in turn; a million layers must not be walked either."""
    good = json.loads((place / "config.json").read_text())
    ours = replace(CFG, name="", conventions=sr.preset("huggingface"))
    for tower in ("vision_config", "text_config"):
        for key in good[tower]:
            (place / "config.json").write_text(json.dumps(good | {tower: good[tower] | {key: value}}))
            with contextlib.suppress(UsageError):
                assert replace(load_checkpoint(place).config, name="", conventions=ours.conventions) == ours


def test_torch_files_without_torch_come_with_the_line_that_converts_them(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pt").write_bytes(b"PK")
    refused(tmp_path / "a.pt", "torch.load('x.pt', map_location='cpu', weights_only=True)")


def test_what_is_no_file_of_weights_is_told_apart(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "a pipe or a device")
    refused(os.devnull, "a pipe or a device")
    with pytest.raises(UsageError, match="no name was given"):  # the folder that one happens to be in
        load_checkpoint("")


def test_a_checkpoint_of_lightning_is_read_under_its_own_name(tmp_path, place):
    torch = pytest.importorskip("torch")
    tensors = {f"model.{name}": torch.tensor(value) for name, value in load_file(place / "model.safetensors").items()}
    torch.save({"state_dict": tensors, "epoch": 3, "callbacks": {}}, place / "last.ckpt")
    (place / "model.safetensors").unlink()
    assert load_checkpoint(place / "last.ckpt").params.keys() == sr.init(CFG).keys()
    torch.save(list(tensors.values()), place / "last.ckpt")
    refused(place / "last.ckpt", "one object, not a dict of tensors", "torch.save(model.state_dict()")


@pytest.mark.parametrize(
    "key, value, words",
    [("num_attention_heads", 3, "3 heads of the tower of images, which is 10 wide"), ("layer_norm_eps", 0, "0 in")],
)
def test_the_setting_that_is_wrong_is_shown_alone(place, key, value, words):
    content = json.loads((place / "config.json").read_text())
    content["vision_config"][key] = value
    (place / "config.json").write_text(json.dumps(content))
    refused(place, words)


def test_two_towers_whose_names_begin_otherwise_are_no_copies(place):
    file = place / "model.safetensors"
    save_file({f"net_{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(UsageError, match="one tower for each side"):
        load_checkpoint(place)
