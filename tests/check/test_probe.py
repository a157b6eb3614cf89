"""An engine's answer to an exported probe: right ones pass, wrong conversions are named where they show."""

import json
from dataclasses import replace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.files.probe_export import LAYOUTS, export_probe, read_probe
from siglip_ref.errors import UsageError
from siglip_ref.use.load import load

SQUARE = "mu/16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("probe") / "tiny"
    export_probe(place, "tiny", "big_vision")
    return place


def answered(folder, tmp_path, change=lambda params, cfg: params, keep=lambda name: True, conventions=None, **more):
    """The file of an engine that converts with `change`."""
    read = read_probe(folder)
    params = {name: np.asarray(value, np.float32) for name, value in read.probe.params.items()}
    changed = {**params, **change(params, read.cfg)}
    out = sr.forward(changed, read.probe.images, read.probe.tokens, read.cfg, conventions, activations=True)
    path = tmp_path / "answer.npz"
    np.savez(path, **{name: value for name, value in out.activations.items() if keep(name)}, **more)
    return path


def check(path, folder, **options):
    return sr.check_dump(path, probe=folder, forward_only=True, **options)


def test_a_right_engine_passes_and_says_what_it_would_have_seen(folder, tmp_path):
    report = check(answered(folder, tmp_path), folder)
    assert report.verdict == "PASS" and len(report.rows) == 18 and not report.not_checked
    assert "qkv-order-q-and-k" in report.sight.seen and "layernorm-backward-mean" in report.sight.elsewhere
    # what is left blind is blind with gradients, too
    assert len(report.sight.blind) < 5


def test_one_tower_is_judged_alone(folder, tmp_path):
    report = check(answered(folder, tmp_path, keep=lambda name: name.startswith("image")), folder)
    assert report.verdict == "PASS" and "10 activations" in report.not_checked[0]
    assert "eos-pooling-first-eos" not in report.sight.seen


def exchanged(one, other):
    def change(params, cfg):
        pairs = [
            (f"image/block01/attn/{one}/{part}", f"image/block01/attn/{other}/{part}") for part in ("kernel", "bias")
        ]
        return {a: params[b] for a, b in pairs} | {b: params[a] for a, b in pairs}

    return change


def channels_first(params, cfg):
    kernel = params["image/patch/kernel"]
    return {
        "image/patch/kernel": kernel.reshape(cfg.patch, cfg.patch, 3, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    }


def turned(params, cfg):
    table = params["image/position"].reshape(cfg.grid[1], cfg.grid[0], -1)
    return {"image/position": table.swapaxes(0, 1).reshape(-1, cfg.embed)}


def made(name, how):
    return lambda params, cfg: {name: how(params[name])}


CONVERSIONS = {
    "q and k": (exchanged("q", "k"), "image/block01/+attn", "query and key weights exchanged"),
    "q and v": (exchanged("q", "v"), "image/block01/+attn", "q and v exchanged"),
    "channels first": (channels_first, "image/stem", "patch/kernel with its rows in the order channel, row, column"),
    "transposed": (made("text/block00/attn/out/kernel", lambda w: w.T), "text/block00/+attn", "out/kernel transposed"),
    "reshaped": (
        made("image/block00/mlp/in/kernel", lambda w: w.T.reshape(w.shape)), "image/block00/+mlp", "in/kernel reshaped"
    ),
    "bias lost": (made("text/head/bias", np.zeros_like), "text/head", "head/bias lost"),
    "gamma less one": (made("image/norm/gamma", lambda g: g - 1), "image/norm", "stored as its difference from 1"),
    "positions turned": (turned, "image/stem", "position column by column"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_wrong_conversion_is_named_at_its_stage(name, folder, tmp_path):
    change, stage, words = CONVERSIONS[name]
    report = check(answered(folder, tmp_path, change), folder)
    assert report.verdict == "FAIL" and report.first_divergent.name == stage
    assert words in report.findings[0].evidence and report.findings[0].tensor == stage, report.findings


def test_the_same_in_every_block_is_one_finding(folder, tmp_path):
    def change(params, cfg):
        return {
            name: params[name].T for name in params if name.endswith("attn/out/kernel") and name.startswith("image/bl")
        }

    report = check(answered(folder, tmp_path, change), folder)
    assert [finding.id for finding in report.findings] == ["conversion"]
    assert "image/block00/+attn, image/block01/+attn" in report.findings[0].evidence


def test_what_no_conversion_explains_is_not_named(folder, tmp_path):
    def noise(params, cfg):
        return {"image/block00/mlp/in/kernel": params["image/block00/mlp/in/kernel"] * 1.01}

    report = check(answered(folder, tmp_path, noise), folder)
    assert report.verdict == "FAIL" and [finding.id for finding in report.findings] == ["unknown"]


def test_another_gelu_is_a_convention(folder, tmp_path):
    erf = replace(read_probe(folder).cfg.conventions, image_gelu="erf")
    report = check(answered(folder, tmp_path, conventions=erf), folder)
    assert report.verdict == "OTHER CONVENTION" and "image_gelu='erf'" in report.findings[0].evidence


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails(bad, folder, tmp_path):
    read = read_probe(folder)
    shape = (len(read.probe.images), read.cfg.embed)
    path = answered(folder, tmp_path, keep=lambda name: name == "text/embed", **{"image/embed": np.full(shape, bad)})
    assert check(path, folder).verdict == "FAIL"


def test_quantised_weights_are_judged_by_those_that_were_used(folder, tmp_path):
    def quantised(params, cfg):
        kernels = {name: value for name, value in params.items() if name.endswith("kernel")}
        steps = {name: np.abs(value).max() / 127 for name, value in kernels.items()}
        return {name: np.round(value / steps[name]) * steps[name] for name, value in kernels.items()}

    read = read_probe(folder)
    used = quantised({name: np.asarray(value, np.float32) for name, value in read.probe.params.items()}, read.cfg)
    plain = answered(folder, tmp_path, quantised)
    assert check(plain, folder).verdict == "FAIL"
    report = check(plain, folder, quantised=True)
    assert report.verdict == "NOT JUDGED" and "cosine 0.9" in report.rows[0].note
    own = {f"params/{name}": value for name, value in used.items()}
    assert check(answered(folder, tmp_path, quantised, **own), folder).verdict == "PASS"


def test_an_engine_of_16_bits_gets_weights_that_are_exact_in_it(tmp_path):
    export_probe(tmp_path / "half", "tiny", "big_vision", "bfloat16")
    read = read_probe(tmp_path / "half")
    assert all(np.array_equal(value, np.float32(np.float16(value))) for value in read.probe.params.values())
    path = answered(tmp_path / "half", tmp_path)
    assert check(path, tmp_path / "half").verdict == "PASS"
    assert check(path, tmp_path / "half", dtype="float32").verdict == "PASS"


def test_weights_that_an_engine_cannot_hold_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="bfloat16 cannot hold the weights"):
        check(answered(folder, tmp_path), folder, dtype="bfloat16")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_back_to_the_same_weights(layout, tmp_path):
    export_probe(tmp_path / "probe", SQUARE, layout)
    read = read_probe(tmp_path / "probe")
    weights = next(path for path in (tmp_path / "probe").iterdir() if path.name.startswith("model"))
    model = load(weights)
    assert model.config.conventions == read.cfg.conventions
    assert all(np.array_equal(model.params[name], value) for name, value in read.probe.params.items())


def test_changed_weights_another_folder_and_wrong_names_are_told(folder, tmp_path):
    path = answered(folder, tmp_path)
    with pytest.raises(UsageError, match="probe export"):
        check(path, tmp_path)
    with pytest.raises(UsageError, match="no embedding is among them"):
        check(answered(folder, tmp_path, keep=lambda name: name == "image/stem"), folder)
    with pytest.raises(UsageError, match="image/blok"):
        check(answered(folder, tmp_path, **{"image/blok": np.zeros(2)}), folder)
    with pytest.raises(UsageError, match="a vector, or a probe"):
        sr.check_dump(path, probe=folder)
    export_probe(tmp_path / "changed", "tiny", "big_vision")
    weights = tmp_path / "changed" / "model.npz"
    with weights.open("ab") as file:
        file.write(b" ")
    with pytest.raises(UsageError, match=r"other bytes in model.npz"):
        check(answered(folder, tmp_path), tmp_path / "changed")


def test_a_probe_that_claims_more_than_its_files_hold_is_refused(tmp_path):
    export_probe(tmp_path / "probe", "tiny", "big_vision")
    about = json.loads((tmp_path / "probe" / "probe.json").read_text())
    about["config"]["vocabulary"] = 10**9
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="more than the files hold"):
        read_probe(tmp_path / "probe")


def test_what_the_layout_cannot_hold_leaves_nothing_behind(tmp_path):
    with pytest.raises(UsageError, match="square images"):
        export_probe(tmp_path / "probe", "tiny", "huggingface")
    assert not (tmp_path / "probe").exists()
    export_probe(tmp_path / "probe", "tiny", "big_vision")
    with pytest.raises(UsageError, match="there already"):
        export_probe(tmp_path / "probe", "tiny", "big_vision")
