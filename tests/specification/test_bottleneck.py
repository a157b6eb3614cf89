"""mSigLIP's bottlenecked token table as a model's option: computed, differentiated, stored, trained, judged."""

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import siglip_ref as sr
from siglip_ref import fast
from siglip_ref.architecture.params import count, shapes
from siglip_ref.architecture.sizes import Tower
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.adapters.torch_model import TorchModel
from siglip_ref.check.model.noise import MEASURED_UP_TO, multiplications
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.checkpoint.tables.names import Entry
from siglip_ref.fast.towers import TowerCache
from siglip_ref.model.optim import AdamW, State, adamw_step
from siglip_ref.ops.elementary import subtree

WHOLE = replace(sr.config("tiny"), image_size=(20, 20))
CFG = replace(WHOLE, bottleneck=5)
PARAMS = sr.init(CFG, seed=1)
IMAGES = np.random.default_rng(2).standard_normal((3, *CFG.image_size, 3))
TOKENS = np.random.default_rng(3).integers(0, CFG.vocabulary, (3, CFG.text_length))
EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "check_torch_model.py"))


def test_the_paper_s_size_is_an_eighth_of_the_table() -> None:
    """arXiv 2303.15343, section 4.3: K = 96 for B."""
    whole = sr.config("B/16-i18n-256")
    narrow = replace(whole, bottleneck=96)
    assert shapes(narrow)["text/token"] == (250_000, 96) and shapes(narrow)["text/widen/kernel"] == (96, 768)
    assert count(whole) - count(narrow) == 192_000_000 - 24_073_728


def test_rows_start_as_long_as_those_of_a_whole_table() -> None:
    cfg = replace(CFG, vocabulary=4000, bottleneck=24, text=replace(CFG.text, width=96))
    params = sr.init(cfg)
    assert (params["text/token"] @ params["text/widen/kernel"]).std() == pytest.approx(96**-0.5, rel=0.1)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_the_product_as_one_table_is_the_same_model(kind: type) -> None:
    """Forward equal; its gradient T gives both: T widen', table' T. The twins compute the same in one kernel."""
    params = {name: np.asarray(value, kind) for name, value in PARAMS.items()}
    loss, grads = sr.loss_and_grads(params, IMAGES.astype(kind), TOKENS, CFG)
    joined = {name: value for name, value in params.items() if "widen" not in name}
    joined["text/token"] = params["text/token"] @ params["text/widen/kernel"]
    same, of_joined = sr.loss_and_grads(joined, IMAGES.astype(kind), TOKENS, WHOLE)
    near = {"rtol": 0, "atol": 1e-13 if kind is np.float64 else 1e-5}
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    whole = of_joined["text/token"]
    np.testing.assert_allclose(grads["text/token"], whole @ params["text/widen/kernel"].T, **near)
    np.testing.assert_allclose(grads["text/widen/kernel"], params["text/token"].T @ whole, **near)
    loss, twins = sr.loss_and_grads(params, IMAGES.astype(kind), TOKENS, CFG, ops=fast)
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    for name, value in grads.items():
        np.testing.assert_allclose(twins[name], value, **near, err_msg=name)
    way = fast.OPS.text_tower.forward(TOKENS, subtree(params, "text"), CFG, CFG.conventions)
    assert isinstance(way[1], TowerCache)


@pytest.mark.parametrize("format_", ["huggingface", "open_clip", "big_vision"])
def test_it_is_saved_and_loaded_in_every_layout(tmp_path: Path, format_: Any) -> None:
    params = {name: np.asarray(value, np.float32) for name, value in PARAMS.items()}
    model = sr.load(save_checkpoint(tmp_path / "saved", params, CFG, format_))
    assert model.config.bottleneck == 5 and model.params.keys() == params.keys()
    assert all(np.array_equal(model.params[name], value) for name, value in params.items())
    wanted = sr.forward(params, IMAGES.astype(np.float32), TOKENS, CFG).text_embed
    own = replace(model.config, conventions=CFG.conventions, image=CFG.image, text=CFG.text)  # heads are in no shape
    assert np.abs(sr.forward(model.params, IMAGES.astype(np.float32), TOKENS, own).text_embed - wanted).max() < 1e-6


def test_a_text_tower_alone_shows_it_by_its_shapes(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    found = load_file(save_checkpoint(tmp_path / "whole", PARAMS, CFG) / "model.safetensors")
    own = {name: np.float32(value) for name, value in found.items() if name.startswith("text_model")}
    save_file(own, tmp_path / "model.safetensors")
    model = sr.load(tmp_path / "model.safetensors")
    assert model.config.bottleneck == 5 and "text/widen/kernel" in model.params


def test_a_file_without_the_matrix_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    place = save_checkpoint(tmp_path / "whole", PARAMS, CFG)
    found = load_file(place / "model.safetensors")
    save_file({name: x for name, x in found.items() if "token_projection" not in name}, place / "model.safetensors")
    with pytest.raises(sr.UsageError, match="token_projection"):
        sr.load(place)


def test_a_step_moves_table_and_matrix_and_decays_the_matrix_alone() -> None:
    """big_vision's pattern decays kernels: so P, and not E."""
    _, grads = sr.loss_and_grads(PARAMS, IMAGES, TOKENS, CFG)
    rules = [AdamW(lr=0.01, decay=decay) for decay in (0.0, 0.5)]
    plain, decayed = (adamw_step(PARAMS, grads, State(), rule)[0] for rule in rules)
    assert (plain["text/token"] == decayed["text/token"]).all()
    assert (plain["text/widen/kernel"] != decayed["text/widen/kernel"]).any()


def torch_model(spoil: Any = lambda table: table) -> TorchModel:
    """The example's model with a bottleneck of torch's own layers."""
    model = EXAMPLE["MyModel"]()
    model.text.tokens = torch.nn.Sequential(torch.nn.Embedding(29, 5), spoil(torch.nn.Linear(5, 12, bias=False)))
    token = Entry("text/token", "text.tokens.0.weight"), Entry("text/widen/kernel", "text.tokens.1.weight", "turned")
    table = (*(entry for entry in EXAMPLE["TABLE"] if entry.ours != "text/token"), *token)
    cfg = replace(EXAMPLE["CONFIG"], bottleneck=5)
    return TorchModel("narrow", model, cfg, table, tuple(EXAMPLE["TAPS"]), EXAMPLE["loss"])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_model_in_torch_is_judged(dtype: Any) -> None:
    report = sr.check_model(torch_model(), dtype)
    assert report.verdict == "PASS", report
    assert "text/widen/kernel" in [row.name for row in report.rows]


def test_a_model_too_large_to_be_measured_is_judged_by_the_law() -> None:
    """The law was fitted without a bottleneck: its matrix is taken for the first product of the other tower."""
    cfg = replace(sr.config("mu/16"), text=Tower(640, 1, 1300, 4), bottleneck=24)
    assert multiplications(cfg, 4) > MEASURED_UP_TO
    small = {name: np.asarray(value, np.float32) for name, value in sr.init(cfg).items()}

    class Reference:
        name, config = "the reference", cfg

        def parameters(self, dtype: Any) -> Any:
            return small

        def run(self, params: Any, images: Any, tokens: Any, dtype: Any) -> Run:
            params = {name: np.asarray(value, np.float32) for name, value in params.items()}
            values = sr.forward(params, np.float32(images), tokens, cfg, activations=True).activations
            loss, grads = sr.loss_and_grads(params, np.float32(images), tokens, cfg)
            return Run(loss, values, grads)

    report = sr.check_model(Reference(), "float32")
    assert report.verdict == "PASS" and "text/widen/kernel" in [row.name for row in report.rows], report


def test_a_mistake_in_torch_is_named() -> None:
    """No gradient through the widening: the table stands still."""

    class Stopped(torch.nn.Linear):
        def forward(self, rows: Any) -> Any:
            return super().forward(rows.detach())

    report = sr.check_model(torch_model(lambda layer: Stopped(5, 12, bias=False)), "float32")
    assert report.verdict == "FAIL" and report.first_divergent is not None
    assert [row.name for row in report.rows if row.verdict == "FAIL"] == ["text/token"], report
    assert math.isclose(report.first_divergent.error or 0, 1) or report.findings
