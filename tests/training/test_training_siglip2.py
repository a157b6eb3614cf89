"""SigLIP 2's recipe: through all stages, the same on any number of ranks, killed and resumed bit for bit."""

import csv
import math

import numpy as np
import pytest
from training_cases import alone, mini, on_ranks, settings, worst

from siglip_ref.errors import UsageError
from siglip_ref.training import siglip2, task
from siglip_ref.training.data import views
from siglip_ref.training.data.captioned import NOISE
from siglip_ref.training.data.inputs import read_inputs
from siglip_ref.training.data.shapes import shapes
from siglip_ref.training.finish import finish
from siglip_ref.training.loop import HISTORY, Quiet, train
from siglip_ref.training.parallel import Alone
from siglip_ref.training.show import Terminal
from siglip_ref.use.inference import best_ops
from siglip_ref.use.load import load

SHORT = {"recipe": "siglip2", "data": "shapes", "steps": 20, "batch": 7, "resolution": 24}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    mini(monkeypatch)


def same(a, b):
    """Two runs, bit for bit: parameters, optimiser, teacher, centres, record."""
    one, other = (
        {**run.params, **{f"slot {n}": v for n, v in run.state.slots.items()}, **run.kept, "history": run.history}
        for run in (a, b)
    )
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n], equal_nan=True) for n in one)


def test_it_trains_through_all_stages_on_one_process_and_on_two_ranks(tmp_path):
    one = alone(tmp_path / "1", **SHORT)
    losses = np.array(one.history)[:, len(HISTORY) :]
    assert np.isfinite(losses[:, :2]).all() and np.isnan(losses[:16, 2:]).all() and np.isfinite(losses[16:, 2:]).all()
    assert len(one.params["image/position"]) == 9 and len(one.kept["teacher/image/position"]) == 9
    for name in ("local/layer0/kernel", "mask/layer0/kernel", "decoder/token", "mask/token"):
        assert (one.params[name] != one.task.params[name]).any(), name
    assert (one.kept["teacher/local/layer0/kernel"] != one.params["local/layer0/kernel"]).any()
    for world in (2, 3):
        for run in on_ranks(world, tmp_path / f"on-{world}", "ring" if world == 3 else "allreduce", **SHORT):
            for found, wanted in ((run.params, one.params), (run.kept, one.kept)):
                error, name = worst(found, wanted)
                print(world, name, error)
                assert error <= 1e-9, (world, name, error)
            assert np.allclose(run.history, one.history, rtol=1e-9, equal_nan=True)


def until(step, out):
    """Stopped there as if interrupted; with a checkpoint after every step."""
    return train(settings(**SHORT), out, Alone(), Quiet(), 1, 10**6, stop_after=step)


def test_stopped_before_any_border_of_stages_it_goes_on_bit_for_bit(tmp_path):
    whole = alone(tmp_path / "whole", **SHORT)
    for step in (3, 16, 17, 19):
        until(step, tmp_path / f"at-{step}")
        assert same(alone(tmp_path / f"at-{step}", **SHORT), whole), step


def test_the_teacher_is_born_as_the_student_and_follows_it_after_each_step(tmp_path):
    before, first, second = (until(step, tmp_path / "1") for step in (16, 17, 18))
    assert not before.kept and set(before.state.slots) < set(first.state.slots)
    student = {f"teacher/{name}": value for name, value in before.params.items()}
    for born, then, now in ((student, first.params, first.kept), (first.kept, second.params, second.kept)):
        for name in now:
            if name.startswith("teacher/"):
                wanted = siglip2.TEACHER * born[name] + (1 - siglip2.TEACHER) * then[name.removeprefix("teacher/")]
                assert np.array_equal(now[name], wanted), name
    assert np.any(first.kept["centre/local"]) and np.any(first.kept["centre/mask"])


def test_gradients_of_accumulated_batches_are_means_and_centres_are_means_over_all(tmp_path):
    two, apart = (train(settings(**SHORT, accumulate=count), tmp_path / f"{count}", Alone(), Quiet(), stop_after=17)
                  for count in (2, 1))  # fmt: skip
    assert all(np.isfinite(value).all() for value in two.params.values())
    lengths = [np.abs(run.kept["centre/local"]).max() for run in (two, apart)]
    assert 0.3 < lengths[0] / lengths[1] < 3, lengths


def test_the_model_and_the_record_are_written_as_any_other_and_losses_are_shown_apart(tmp_path, capsys):
    run = alone(tmp_path, Terminal(), **SHORT)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert "local" not in lines[0] and all(
        f"  {name} " in lines[-1] for name in ("sigmoid", "captions", "local", "mask")
    )
    finish(run.settings, tmp_path, run, Alone(), Quiet())
    model = load(tmp_path / "model")
    assert model.config.image_size == (24, 24)
    assert set(model.params) < set(run.params) and not any(name.startswith("decoder") for name in model.params)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert list(rows[0]) == ["step", *HISTORY, "sigmoid", "captions", "local", "mask"]
    assert rows[15]["local"] == "" and float(rows[16]["local"]) > 0
    total = sum(w * float(rows[19][name]) for name, w in zip(("sigmoid", "captions", "local", "mask"),
                (1, 1, 0.25, 0.0625), strict=True))  # fmt: skip
    assert math.isclose(total, float(rows[19]["loss"]), rel_tol=1e-12)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"data": "digits"}, "--data digits"),
        ({"loss": "softmax"}, "loss"),
        ({"micro": 2}, "micro"),
        ({"resolution": 20}, "--resolution 20"),
        ({"recipe": "siglip"}, "--recipe siglip"),
        ({"optimiser": "big_vision"}, "optimiser"),
    ],
)
def test_what_the_recipe_has_no_place_for_is_refused(changes, names):
    with pytest.raises(UsageError) as refused:
        read_inputs(settings(**SHORT | changes), 1)
    assert names in refused.value.got


def test_a_box_holds_what_is_drawn_and_nothing_else():
    part, rng = shapes().train, np.random.default_rng(0)
    for number in rng.integers(0, part.count, 40):
        noise = rng.random(NOISE)
        picture = part.picture(int(number), noise).astype(int)
        drawn = np.argwhere(np.abs(picture - picture[0, 0]).max(-1) > 12)
        (top, left), (bottom, right) = drawn.min(0), drawn.max(0) + 1
        found = np.array(part.region(int(number), noise)[1]) * picture.shape[0]
        assert np.abs(found - (left, top, right, bottom)).max() < 1.6, (part.names(number), found)


def test_a_cut_is_of_the_share_that_was_asked_for_and_lies_inside():
    boxes = []

    class Picture:
        width, height = 64, 32

        def resize(self, size, kind, box):
            boxes.append(box)

    how, rng = views.Preprocess("huggingface"), np.random.default_rng(0)
    for place in rng.random((200, 4)):
        views.cut(Picture(), (16, 16), views.LOCAL, place, how)
    left, top, right, bottom = np.array(boxes).T
    share = (right - left) * (bottom - top) / (64 * 32)
    assert (left >= 0).all() and (top >= 0).all() and (right <= 64).all() and (bottom <= 32).all()
    assert share.min() >= 0.05 - 1e-9 and share.max() <= 0.4 + 1e-9 and share.std() > 0.08


@pytest.mark.nightly
def test_the_same_with_compiled_operations_and_the_model_of_the_shapes(tmp_path, monkeypatch):
    """100 steps of the default model in float64."""
    for room in (task, siglip2):
        monkeypatch.setattr(room, "best_ops", best_ops)
    long = SHORT | {"model": "", "steps": 100, "batch": 9, "resolution": 40}
    one = alone(tmp_path / "1", **long)
    run = on_ranks(2, tmp_path / "2", **long)[0]
    for found, wanted in ((run.params, one.params), (run.kept, one.kept)):
        error, name = worst(found, wanted)
        print(name, error)
        assert error <= 1e-9, (name, error)
