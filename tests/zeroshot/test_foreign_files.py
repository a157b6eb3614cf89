"""At the command line: files that are broken, foreign or strange end with exit code 2 and a panel, not a traceback."""

import io
import json
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.cli.main import main

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint"))
from saved import CFG, PARAMS, save, settings, tensors, write  # beside the tests of checkpoints

WEIGHT = "vision_model.encoder.layers.0.mlp.fc1.weight"


def run(capsys, *words):
    """The command's exit code, output and errors."""
    sys.argv = ["siglip-ref", *map(str, words)]
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


@pytest.fixture
def place(tmp_path):
    Image.new("RGBA", (30, 40), (0, 0, 0, 0)).save(tmp_path / "photo.png")
    return save(tmp_path / "model")


def npz(place, member, name="img/embedding/kernel.npy", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(place / "m.npz", "w", method) as archive:
        archive.writestr(name, member)
    return place / "m.npz"


def npy(header):
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(16)


def damaged(place, method):
    """One byte of a packed array."""
    array = io.BytesIO()
    np.save(array, np.arange(5000) % 17)
    file = npz(place, array.getvalue(), method=method)
    content = bytearray(file.read_bytes())
    content[100:104] = b"\xff\xff\xff\xff"
    file.write_bytes(content)
    return file


def encrypted(place):
    file = npz(place, npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}"))
    content = bytearray(file.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    file.write_bytes(content)
    return file


def pickled(place, content):
    torch = pytest.importorskip("torch")
    torch.save(content, place / "m.pt")
    return place / "m.pt"


def index(place, shard):
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    return place


def told(place, **content):
    settings(place, "preprocessor_config.json", **content)
    return place


FILES = {
    "integers": lambda place: write(place, tensors(place) | {WEIGHT: np.ones((13, 10), np.int64)}),
    "truth values": lambda place: write(place, tensors(place) | {WEIGHT: np.ones((13, 10), bool)}),
    "a shard without a name": lambda place: index(place, ""),
    "a shard of 5,000 letters": lambda place: index(place, "x" * 5000),
    "a shard that is NUL": lambda place: index(place, "a\0b"),
    "a header that does not end": lambda place: npz(place, npy("{'descr': '<f4', 'shape': (((")),
    "a header of numbers": lambda place: npz(place, npy("{1: 2, 3: 4}")),
    "a header of white space": lambda place: npz(place, npy("\n   \n  x\n y")),
    "two bytes of nothing": lambda place: npz(place, npy("{'descr': '|V1', 'fortran_order': False, 'shape': (16,)}")),
    "no type": lambda place: npz(place, npy("{'descr': [], 'fortran_order': False, 'shape': (16,)}")),
    "damage in deflate": lambda place: damaged(place, zipfile.ZIP_DEFLATED),
    "damage in lzma": lambda place: damaged(place, zipfile.ZIP_LZMA),
    "encrypted": encrypted,
    "no dict": lambda place: pickled(place, {"state_dict": None}),
    "a list": lambda place: pickled(place, {"state_dict": [1]}),
    "a text": lambda place: pickled(place, {"state_dict": "x"}),
    "deviations of letters": lambda place: told(place, image_std=["x", 0.5, 0.5]),
    "a deviation of 0": lambda place: told(place, image_std=[0, 0.5, 0.5]),
    "a huge mean": lambda place: told(place, image_mean=[10**400] * 3),
    "no deviation": lambda place: told(place, image_std=[None] * 3),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_nobody_can_use(capsys, place, what):
    file = FILES[what](place)
    words = ("--image", place.parent / "photo.png", "--labels", "cat,dog", "--tokenizer", "bytes")
    code, out, err = run(capsys, "zeroshot", "--model", file, *words)
    assert code == 2 and "cannot do this" in err and not out


@pytest.mark.parametrize(
    "what", ["a header that does not end", "a header of numbers", "damage in deflate", "damage in lzma"]
)
def test_dumps_that_nobody_can_read(capsys, place, what):
    code, out, err = run(capsys, "check", "dump", FILES[what](place), "--vector", "loss/one-pair")
    assert code == 2 and "m.npz" in err and not out


def test_a_tower_at_the_command_line(capsys, place):
    """Images are embedded, transparency is counted, texts are refused before anything is asked of a tokeniser."""
    write(place, {name: value for name, value in tensors(place).items() if name.startswith("vision_model.")})
    out = place.parent / "x.npy"
    code, _, err = run(capsys, "embed", "--model", place, "--images", place.parent / "photo.png", "--out", out)
    assert code == 0 and np.load(out).shape == (1, 10)
    assert "image tower alone" in err and "1 image has transparency" in err
    (place.parent / "t.txt").write_text("a cat\n")
    words = ("--text", place.parent / "t.txt", "--out", place.parent / "t.npy")
    code, _, err = run(capsys, "embed", "--model", place, *words)
    assert code == 2 and "image tower alone" in " ".join(err.split())
    assert run(capsys, "check", "checkpoint", place)[0] == 0


def test_a_copy_is_chosen_at_the_command_line(capsys, place):
    found = tensors(place)
    write(place, {f"{which}.{name}": value for which in ("ema", "model") for name, value in found.items()})
    assert run(capsys, "check", "checkpoint", place)[0] == 2
    code, out, _ = run(capsys, "check", "checkpoint", place, "--prefix", "ema.")
    assert code == 0 and "default" in out and "config.json" in out  # where settings come from


def test_weights_that_are_not_finite_give_no_answer(capsys, place):
    params = PARAMS | {"image/norm/beta": PARAMS["image/norm/beta"] * np.nan}
    save_checkpoint(place, params, CFG)
    words = ("--images", place.parent / "photo.png", "--out", place.parent / "x.npy")
    code, _, err = run(capsys, "embed", "--model", place, *words)
    assert code == 2 and "1 tensor holds NaN: image/norm/beta" in err and not (place.parent / "x.npy").exists()
