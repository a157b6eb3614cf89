"""The packaged vectors are what they say: proven, exact, reproducible, and chosen so that mix-ups show."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.mistakes import reference
from siglip_ref.vectors.content import FLAGS, drafts
from siglip_ref.vectors.draw import integers, numbers, partners, unit_rows
from siglip_ref.vectors.export import export
from siglip_ref.vectors.files import read_json, read_npz, read_safetensors
from siglip_ref.vectors.generate import build, proves, write
from siglip_ref.vectors.power import errors, run
from siglip_ref.vectors.store import FOLDER, Vector, packaged
from siglip_ref.vectors.tasks import TASKS

VECTORS = list(packaged().vectors.values())
# every group is proven again in each run of the tests; all of them in the nightly one
SAMPLE = [
    v for v in VECTORS if v.group in ("loss", "accumulation", "block") or v.id in ("ops/gelu-erf", "ranks/w3-uneven")
]
SAMPLE += [packaged().find(name) for name in ("text/odd-model", "steps/adamw", "steps/big_vision")]


def test_under_eight_megabytes() -> None:
    assert sum((FOLDER / name).stat().st_size for name in ("golden.json", "golden.safetensors", "measured.json")) < 8e6


@pytest.mark.parametrize("vector", SAMPLE, ids=lambda v: v.id)
def test_expected_numbers_are_proven_again(vector: Vector) -> None:
    assert proves(vector)


@pytest.mark.nightly
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.id)
def test_every_expected_number_is_proven_again(vector: Vector) -> None:
    assert proves(vector)


def test_one_wrong_digit_is_not_proven() -> None:
    vector = packaged().find("loss/one-pair")
    wrong = dict(vector.expected) | {"loss": np.nextafter(vector.expected["loss"], 9)}
    assert not proves(Vector(**{**vars(vector), "expected": wrong}))


@pytest.mark.nightly
def test_regenerate_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("golden.json", "golden.safetensors"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_regenerate_gives_the_same_records() -> None:
    """Some vectors of each kind, built anew: their hashes are the packaged ones."""
    chosen = [draft for draft in drafts() if draft.id in {vector.id for vector in SAMPLE}]
    before = {record["id"]: record for record in read_json(FOLDER / "golden.json")["vectors"]}
    path = FOLDER / "golden.json"
    for record in read_json(path, build(chosen)["golden.json"])["vectors"]:
        assert record == before[record["id"]]


def test_the_reference_in_float64_is_right_everywhere() -> None:
    for vector in VECTORS:
        worst = max(errors(vector, run(vector, reference())).values())
        assert worst <= 1e-12, vector.id


def test_drafts_and_packaged_vectors_are_the_same() -> None:
    assert [draft.id for draft in drafts()] == [vector.id for vector in VECTORS]
    assert {flag for vector in VECTORS for flag in vector.flags} == FLAGS.keys() == packaged().flags.keys()
    assert {vector.task for vector in VECTORS} == TASKS.keys()


def test_inputs_are_exact_in_narrow_formats() -> None:
    """float16 by NumPy's own rounding; bfloat16: the lower half of a float32 is empty."""
    for vector in VECTORS:
        floats = [value for value in vector.inputs.values() if value.dtype.kind == "f"]
        assert all(not (value.astype(np.float32).view(np.uint32) & 0xFFFF).any() for value in floats), vector.id
        assert all(np.array_equal(value.astype(np.float16), value) for value in floats) == (
            "float16" in vector.exact_in
        )


def test_unit_rows_are_exactly_unit() -> None:
    for vector in (v for v in VECTORS if v.group in ("loss", "ranks", "accumulation")):
        for name, value in vector.inputs.items():
            if "embed" in name:
                assert ((value * value).sum(-1) == 1).all(), vector.id


@pytest.mark.parametrize("width", [5, 6, 9, 40, 300])
def test_unit_rows_of_any_width(width: int) -> None:
    rows = unit_rows("any", 20, width)
    assert ((rows * rows).sum(-1) == 1).all()
    other = partners(rows, "any", width // 2 + 1)
    assert ((other * other).sum(-1) == 1).all()
    assert not (other == rows).all(-1).any()


def test_draws_never_change() -> None:
    """The inputs are published: another generator would be another set of vectors."""
    assert hashlib.sha256(integers("x", (1000,), 50).astype("<i8").tobytes()).hexdigest()[:16] == "267a1be334a0a34b"
    drawn = numbers("y", (10_000,), 2.0)
    assert drawn.min() == -2
    assert drawn.max() == 2
    assert abs(drawn.mean()) < 0.05


def test_ranks_differ_and_biases_are_not_zero() -> None:
    for vector in VECTORS:
        numbers = {n: v for n, v in vector.inputs.items() if v.dtype.kind == "f"}  # flags and masks may be alike
        shards = [v.tobytes() for n, v in numbers.items() if "/rank" in n or "/micro" in n]
        assert len(set(shards)) == len(shards)
        for name, value in vector.inputs.items():
            if name.endswith("bias") and value.ndim:
                assert value.any(), f"{vector.id} {name}"


def test_zeros_by_structure_are_key_biases_alone() -> None:
    for vector in VECTORS:
        assert all(name.endswith("k/bias") and scale > 0 for name, scale in vector.zero.items())
        quiet = {name for name, value in vector.expected.items() if not value.any()}
        assert quiet <= set(vector.zero) | {"d/text/position"}, vector.id


def test_export_writes_what_was_asked(tmp_path: Path) -> None:
    assert export(tmp_path, "ranks/w3") == ["ranks/w3-balanced", "ranks/w3-uneven"]
    place, vector = tmp_path / "ranks/w3-uneven", packaged().find("ranks/w3-uneven")
    tensors, metadata = read_safetensors(place / "inputs.safetensors")
    assert metadata["vector"] == vector.id
    packed = read_npz(place / "inputs.npz")
    for name, value in vector.inputs.items():
        np.testing.assert_array_equal(tensors[name], value)
        np.testing.assert_array_equal(packed[name.replace("/", ".")], value)
    assert read_json(place / "vector.json")["compute"]["rank2/d_text_embed"] == [3, 9]
    with pytest.raises(sr.UsageError, match="vectors list"):
        export(tmp_path, "no such")


def test_published_ids_stay() -> None:
    """A list that only grows."""
    known = (Path(__file__).parent / "published_ids.txt").read_text().split()
    assert set(known) <= {vector.id for vector in VECTORS}
