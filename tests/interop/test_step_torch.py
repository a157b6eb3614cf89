"""check_step on training steps in torch: right ones pass, every mistake of the catalogue is named first."""

from pathlib import Path

import pytest
import torch
from step_mistakes import MISTAKES, RIGHT, RULE, Autocast, Step, adamw, built

import siglip_ref as sr
from siglip_ref.cli.main import main
from siglip_ref.model.optim import matrices

DTYPES = (pytest.param("float64", marks=pytest.mark.nightly), "float32")


def report_of(arguments):
    return sr.check_step(**{"rule": RULE, "model": getattr(arguments["step_fn"], "model", None)} | arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_steps_pass(name, dtype):
    report = report_of(RIGHT[name](dtype))
    assert report.verdict == "PASS", report
    assert max(row.excess for row in report.rows) <= 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.sampled(6)
def test_every_mistake_is_named(name, dtype):
    report = report_of(MISTAKES[name](dtype))
    assert report.verdict == "FAIL"
    assert report.findings[0].id == name, report


def test_the_model_is_as_it_was():
    step = built()
    model = step.model.eval()
    model.logit_bias.grad = torch.full_like(model.logit_bias, 3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    report_of({"step_fn": lambda *batch: (model.train(), torch.rand(1), step(*batch)), "model": model})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["logit_bias"]
    assert grads["logit_bias"] == 3.0


def test_own_weights_are_kept_and_have_to_be_numbers():
    step = built()
    assert report_of({"step_fn": step, "model": step.model, "weights": "own"}).verdict == "PASS"
    with torch.no_grad():
        step.model.logit_bias.fill_(torch.nan)
    with pytest.raises(sr.UsageError, match="before any step"):
        report_of({"step_fn": step, "model": step.model, "weights": "own"})


def test_autocast_passes_where_it_is_declared():
    report = report_of({"step_fn": built(Autocast), "dtype": "bfloat16"})
    assert report.verdict == "PASS", report
    assert any("clip" in line for line in report.blind)  # much hides below its noise
    mistake = built(Autocast)
    mistake.optimizer = adamw(mistake.model, kind=torch.optim.Adam)
    assert report_of({"step_fn": mistake, "dtype": "bfloat16"}).findings[0].id == "weight-decay-coupled"


def test_two_mistakes_are_named_both():
    class Both(Step):
        def clip(self):
            pass

    step = built(Both)
    step.optimizer = adamw(step.model, lambda name, p: True)
    named = {finding.id for finding in report_of({"step_fn": step}).findings}
    assert named == {"clip-missing", "weight-decay-everywhere"}


def test_open_clips_choice_of_what_decays_is_told():
    def decays(name, p):
        return p.ndim >= 2 and "position_embedding" not in name

    report = report_of({"step_fn": built(decays=decays)})
    assert report.verdict == "OTHER CONVENTION"
    assert "decays=matrices" in report.findings[0].evidence
    declared = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0, decays=matrices)
    assert report_of({"step_fn": built(decays=decays), "rule": declared}).passed


EXAMPLE = Path(__file__).parents[2] / "examples" / "check_torch_step.py"


@pytest.mark.parametrize(("change", "code"), [(("", ""), 0), (("clip_grad_norm_", "clip_grad_value_"), 1)])
def test_the_example_on_the_command_line(tmp_path, monkeypatch, capsys, change, code):
    (tmp_path / "project.py").write_text(EXAMPLE.read_text().replace(*change))
    monkeypatch.setattr("sys.argv", ["siglip-ref", "check", "step", f"{tmp_path}/project.py:whole_step"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert ("PASS" if code == 0 else "FAIL") in capsys.readouterr().out


def test_the_command_line_wants_the_arguments(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.py").write_text("def make():\n    return 3\n")
    monkeypatch.setattr("sys.argv", ["siglip-ref", "check", "step", f"{tmp_path}/other.py:make"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "return dict(step_fn" in capsys.readouterr().err
