"""A port to plain JavaScript, as it stands in examples/ and with the mistakes of ports, judged by its answer."""

import subprocess
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable  # brings its own Node

import siglip_ref as sr
from siglip_ref.check.files.probe_export import export_probe

PROGRAM = Path(__file__).parents[2] / "examples" / "engine.mjs"


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "probe"
    export_probe(folder, "mu/16", "huggingface")
    return folder


def report_of(text, probe, tmp_path):
    program, answer = tmp_path / "engine.mjs", tmp_path / "answer.safetensors"
    program.write_text(text)
    node = compute_driver_executable()[0]
    done = subprocess.run([node, program, probe, answer], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return sr.check_dump(answer, probe=probe, forward_only=True)


def test_the_port_passes(probe, tmp_path):
    report = report_of(PROGRAM.read_text(), probe, tmp_path)
    assert report.verdict == "PASS" and not report.not_checked, report


LOOP = "for (let m = 0; m < M; m++)\n          for (let i = 0; i < size; i++) scores"
KEYS = "N === M ? n + 1 : M"
TANH = "1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))"
PIXEL = "((b * channels + c) * height + top + y) * across + left + x"
WEIGHT = "weight.data[o * inputs + i]"
LAST = "((b + 1) * length - 1) * width, (b + 1) * length * width"
# what is written instead, the first stage that is wrong, what the report says
MISTAKES = {
    "quick gelu": (TANH, "2 / (1 + Math.exp(-1.702 * v))", "+mlp", "quick"),
    "eps": ("eps = 1e-6", "eps = 1e-5", "+attn", "eps"),
    "scores": (" / Math.sqrt(size)", " / Math.sqrt(width)", "+attn", "attention-scale-width"),
    "pixels": (PIXEL, PIXEL.replace("top + y", "top + x").replace("left + x", "left + y"), "stem", "row"),
    "transposed": (WEIGHT, f"(inputs === outputs ? weight.data[i * inputs + o] : {WEIGHT})", "+attn", ""),
    "residual": ("add(out, mlp(", "add(out.map(() => 0), mlp(", "pool", "map-head-no-residual"),
    "first token": (LAST, "b * length * width, (b * length + 1) * width", "text/pool", "text_pooling='first'"),
    # keys that it must not see get a score of 0, and so a share: no causal mask, and not called one
    "mask of zeros": (LOOP, LOOP.replace("m < M", f"m < ({KEYS})"), "+attn", "wrong by itself"),
    "query and key": ('["q", "k", "v"]', '["k", "q", "v"]', "+attn", "qkv-order-q-and-k"),
    "bias": ("scale * sum + shift", "scale * sum - shift", "logits", ""),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.sampled(2)
def test_a_wrong_port_is_told_where(name, probe, tmp_path):
    old, new, stage, words = MISTAKES[name]
    text = PROGRAM.read_text()
    assert text.count(old) == 1
    report = report_of(text.replace(old, new), probe, tmp_path)
    assert report.verdict in ("FAIL", "OTHER CONVENTION"), report
    assert stage in report.first_divergent.name and words in str(report), report
