"""Images that cannot be read, losses that are no number, settings that do not fit: said, and nothing is lost."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_cases import alone, mini, on_ranks

from mpi.comm import RankFailed
from siglip_ref.errors import UsageError
from siglip_ref.training.data.captioned import STILL
from siglip_ref.training.data.sources import open_data
from siglip_ref.training.saved.store import newest
from siglip_ref.training.settings import TrainingStopped


@pytest.fixture(autouse=True)
def small(monkeypatch):
    mini(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """Thirty images of two classes, three of them broken."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / name).mkdir()
        for number in range(15):
            pixels = rng.integers(level - 30, level + 30, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    for broken in ("dark/3", "light/7", "light/8"):
        path = tmp_path / f"{broken}.png"
        path.write_bytes(path.read_bytes()[:60])
    return tmp_path


def test_broken_images_are_skipped_and_counted(folder, tmp_path):
    run = alone(tmp_path / "out", data=str(folder), steps=20, batch=9)
    everything = {str(folder / f"{name}.png") for name in ("dark/3", "light/7", "light/8")}
    assert run.skipped and set(run.skipped) <= everything
    assert len(run.skipped) + sum(name in str(held) for held in held_out(folder) for name in everything) == 3
    assert run.judged[-1]["zero-shot accuracy"] >= 0.5


def held_out(folder):
    part = open_data(str(folder)).test
    return [part.names(number) for number in range(part.count)]


def test_ranks_count_together(folder, tmp_path):
    one = alone(tmp_path / "1", data=str(folder), steps=8, batch=9)
    for run in on_ranks(3, tmp_path / "3", data=str(folder), steps=8, batch=9):
        assert run.broken == one.broken == len(one.skipped)


def test_no_image_at_all_can_be_read(folder, tmp_path):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="none can"):
        alone(tmp_path / "out", data=str(folder), steps=2, batch=9)


def test_no_held_out_image_can_be_read_is_said_before_the_first_step(folder, tmp_path):
    for path in held_out(folder):
        Path(path).write_bytes(b"nothing")
    with pytest.raises(UsageError, match="held-out images that can be read"):
        alone(tmp_path / "out", data=str(folder), steps=2, batch=9)


def test_a_loss_that_is_no_number_stops_before_the_update(tmp_path):
    with pytest.raises((TrainingStopped, UsageError), match=r"NaN|finite"), np.errstate(all="ignore"):
        alone(tmp_path, steps=20, lr=1e200, warmup=0)
    saved, broken = newest(tmp_path / "checkpoints")
    assert not broken and (saved is None or all(np.isfinite(value).all() for value in saved.tensors.values()))


def test_the_rank_with_the_bad_number_is_named(tmp_path, monkeypatch):
    from mpi.training.train import Ranks

    def poisoned(self, array):
        if self.rank == 2 and self.step == 3 and array.size > 1000:
            array = array.copy()
            array[:-3] = np.nan
            array[-1] = 0
        return original(self, array)

    original = Ranks.sum
    monkeypatch.setattr(Ranks, "sum", poisoned)
    with pytest.raises(RankFailed) as caught, np.errstate(all="ignore"):
        on_ranks(3, tmp_path, steps=6)
    assert "step 3" in str(caught.value) and "rank 2 is not a finite number" in str(caught.value)


def test_ranks_that_drift_apart_are_named(tmp_path, monkeypatch):
    from siglip_ref.training import loop

    original = loop.summed

    def drifted(run, parallel):
        loss, grads = original(run, parallel)
        if parallel.rank == 1 and run.step == 2:
            grads["text/head/bias"] = grads["text/head/bias"] * (1 + 1e-9)
        return loss, grads

    monkeypatch.setattr(loop, "summed", drifted)
    with pytest.raises(RankFailed, match="rank 1 are not those of rank 0"):
        on_ranks(2, tmp_path, steps=6)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": "nowhere"}, "nothing at this path"),
        ({"freeze": "image"}, "name a checkpoint"),
        ({"data": "shapes", "loss": "labels"}, "one folder a class"),
        ({"model": "giant"}, "got: +'giant'"),
        ({"clip": -1.0}, "clip -1"),
        ({"clip": float("nan")}, "clip above 0"),
        ({"decay": float("nan")}, "decay nan"),
        ({"lr": float("inf")}, "lr inf"),
    ],
)
def test_settings_that_do_not_fit(changes, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        alone(tmp_path, **changes)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can be written to"):
        alone(tmp_path / "file" / "run")


def test_fewer_pairs_than_ranks(tmp_path):
    with pytest.raises(RankFailed, match="a pair for each rank"):
        on_ranks(3, tmp_path, batch=2)


def test_captions_in_a_csv_and_beside_images(folder, tmp_path):
    images = sorted(folder.rglob("*.png"))
    listed = folder / "captions.csv"
    listed.write_text(
        "image,caption\n" + "".join(f"{p.relative_to(folder)},{p.parent.name} {p.stem}\n" for p in images)
    )
    data = open_data(str(listed))
    assert data.train.count + data.test.count == 30 and not data.classes
    for path in images:
        path.with_suffix(".txt").write_text(f"one of {path.stem}\n\nanother\n")
    data = open_data(str(folder))
    captions = [data.train.caption(0, np.array([noise, *STILL[1:]])) for noise in (0.0, 0.9)]
    assert captions[0].startswith("one of") and captions[1] == "another"
    with pytest.raises(UsageError, match="image,caption"):
        listed.write_text("file,words\na,b\n")
        open_data(str(listed))


def test_a_batch_with_more_pairs_than_there_are_is_said():
    from siglip_ref.training.data.inputs import read_inputs
    from siglip_ref.training.settings import Settings

    several = "pairs stand in a batch several times, as negatives of themselves"
    notes = [read_inputs(Settings(data="digits", batch=batch), 1).notes for batch in (5000, 24)]
    assert several in notes[0][0] and not notes[1]
