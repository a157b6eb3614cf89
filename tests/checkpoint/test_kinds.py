"""What is no weight is refused in every format: integers, bool, complex numbers, names twice. NaN is counted."""

import io
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from saved import CFG, PARAMS, save, tensors

from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint, to_their_tensors
from siglip_ref.checkpoint.tables import huggingface
from siglip_ref.errors import UsageError

torch = pytest.importorskip("torch")
FORMATS = ("safetensors", "npz", "pt", "legacy pt")
WEIGHT = "vision_model.encoder.layers.0.mlp.fc1.weight"


def in_format(place, format, **changed):
    """A model with some of its tensors of another kind; "bias": the smallest one, of one number."""
    content = tensors(place)
    flax = {"img/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": "weight", "b": "bias", "t": "scale"}
    hugging = {"weight": WEIGHT, "bias": "logit_bias", "scale": "logit_scale"}
    if format == "npz":
        file = save_checkpoint(place / "m.npz", PARAMS, CFG, "big_vision")
        with np.load(file) as archive:
            content = {name: archive[name] for name in archive.files}
        content |= {name: changed[short](content[name]) for name, short in flax.items() if short in changed}
        np.savez(file, **content)
        return file
    content |= {hugging[short]: change(content[hugging[short]]) for short, change in changed.items()}
    if format == "safetensors":
        save_file(content, place / "model.safetensors")
        return place
    (place / "model.safetensors").unlink()
    new = format == "pt"
    torch.save(
        {name: torch.from_numpy(np.array(value)) for name, value in content.items()},
        place / "pytorch_model.bin",
        _use_new_zipfile_serialization=new,
    )
    return place


@pytest.fixture
def place(tmp_path):
    return save(tmp_path / "model")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("which", ["weight", "bias"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "int64", "bool", "complex64", "uint16"])
def test_integers_truth_values_and_complex_numbers_are_no_weights(place, format, which, kind):
    if (format, kind) == ("legacy pt", "uint16"):
        return  # torch does not write it
    file = in_format(place, format, **{which: lambda array: (array * 3).astype(kind)})
    with pytest.raises(UsageError, match=kind) as caught:
        load_checkpoint(file)
    words = "quantised weights" if kind[0] in "iu" else "no model computes with such numbers"
    assert words in caught.value.cause or which == "weight"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16"])
def test_floats_are_weights_in_every_format(place, format, kind):
    if kind == "bfloat16" and format != "safetensors":
        return  # NumPy writes none: see the tests of each format
    file = in_format(
        place, format, weight=lambda array: array.astype(kind if kind != "bfloat16" else ml_dtypes.bfloat16)
    )
    found = load_checkpoint(file, np.float64).params["image/block00/mlp/in/kernel"]
    stored = PARAMS["image/block00/mlp/in/kernel"].astype(kind if kind != "bfloat16" else ml_dtypes.bfloat16)
    assert np.array_equal(found, stored.astype(np.float64))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(place, format, value):
    def change(array):
        array = array.copy()
        array.flat[0] = value
        return array

    checkpoint = load_checkpoint(in_format(place, format, weight=change, bias=change))
    what = "NaN" if np.isnan(value) else "infinities"
    assert [note for note in checkpoint.notes if note.startswith(f"2 tensors hold {what}: image/block00/mlp/in/kernel")]


def test_weights_beyond_the_range_of_the_type_asked_for(place):
    file = in_format(place, "safetensors", weight=lambda array: array.astype(np.float64) * 0 + 1e300)
    assert load_checkpoint(file, np.float64).notes == ()
    assert load_checkpoint(file).notes == ("1 tensor holds infinities: image/block00/mlp/in/kernel",)


def test_huge_but_finite_weights_are_finite(place):
    """Their squares are not."""
    assert load_checkpoint(in_format(place, "safetensors", weight=lambda array: array * 0 + 1e30)).notes == ()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("second", ["b.npy", "b"])
def test_an_array_that_stands_twice_in_an_npz(tmp_path, second, method):
    file = save_checkpoint(tmp_path / "m", PARAMS, CFG, "big_vision")
    page = io.BytesIO()
    np.save(page, np.float32([7]))
    with zipfile.ZipFile(file, "a", method) as archive:
        archive.writestr(second, page.getvalue())
    with pytest.raises(UsageError, match="'b' stands twice"):
        load_checkpoint(file)


def test_a_name_that_stands_twice_in_a_header(place):
    import json

    header = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = f'{{"a": {json.dumps(header)}, "a": {json.dumps(header)}}}'.encode()
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(UsageError, match="a name occurs twice"):
        load_checkpoint(place)


def test_one_name_as_it_is_and_in_a_wrapper(place):
    content = {name: torch.from_numpy(np.array(value)) for name, value in tensors(place).items()}
    (place / "model.safetensors").unlink()
    torch.save(content | {"module.logit_bias": torch.ones(1)}, place / "pytorch_model.bin")
    with pytest.raises(UsageError, match="each tensor once"):
        load_checkpoint(place)
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(2)}, place / "pytorch_model.bin")
    with pytest.raises(UsageError, match="every name once"):
        load_checkpoint(place)


ODD = {
    "sparse": lambda: torch.eye(13, 10).to_sparse(),
    "meta device": lambda: torch.zeros(13, 10, device="meta"),
    "float8_e4m3fn": lambda: torch.zeros(13, 10).to(torch.float8_e4m3fn),
    "float8_e5m2": lambda: torch.zeros(13, 10).to(torch.float8_e5m2),
    "negated or conjugated": lambda: torch.zeros(13, 10, dtype=torch.complex64).conj().imag,
    "repeats its numbers": lambda: torch.zeros(1).expand(13, 10),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(13, 10), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD)
def test_tensors_that_are_no_rows_of_numbers(place, what):
    content = {name: torch.from_numpy(np.array(value)) for name, value in tensors(place).items()}
    (place / "model.safetensors").unlink()
    torch.save(content | {WEIGHT: ODD[what]()}, place / "pytorch_model.bin")
    with pytest.raises(UsageError, match=what):
        load_checkpoint(place)
    torch.save({"state_dict": content, "other": ODD[what]()}, place / "pytorch_model.bin")
    assert load_checkpoint(place).params.keys() == PARAMS.keys()  # nobody asks for it


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nest", ["", "state_dict", "model"])
def test_files_of_torch_are_what_torch_reads(place, legacy, nest):
    """Views, transposed rows, bfloat16, parameters, an optimiser beside them; without torch."""
    theirs = to_their_tensors(PARAMS, huggingface.table(CFG), CFG, "huggingface")
    content = {name: torch.from_numpy(np.array(value)) for name, value in theirs.items()}
    content[WEIGHT] = torch.cat([content[WEIGHT].T.contiguous()] * 2)[10:].T
    content["logit_scale"] = torch.nn.Parameter(content["logit_scale"])
    content["text_model.head.weight"] = content["text_model.head.weight"].bfloat16()
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    whole = {nest: content, "epoch": 3, "optimizer": optimiser.state_dict()} if nest else content
    (place / "model.safetensors").unlink()
    file = place / "pytorch_model.bin"
    torch.save(whole, file, _use_new_zipfile_serialization=not legacy)
    params = load_checkpoint(place).params
    exact = {n: v for n, v in PARAMS.items() if n != "text/head/kernel"}
    assert all(np.array_equal(params[name], value) for name, value in exact.items())
    assert np.array_equal(
        params["text/head/kernel"], PARAMS["text/head/kernel"].astype(ml_dtypes.bfloat16).astype("f4")
    )


@pytest.mark.parametrize("content", [None, [], "x", 3, torch.ones(3), {"state_dict": None}, {"state_dict": []}, {}])
def test_files_of_torch_without_a_dict_of_tensors(place, content):
    (place / "model.safetensors").unlink()
    torch.save(content, place / "pytorch_model.bin")
    with pytest.raises(UsageError):
        load_checkpoint(place)
