"""A folder has one training, which goes on only with the data, weights and steps that it was begun with."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_cases import MINI, alone, mini, on_ranks, settings

import siglip_ref as sr
from mpi.comm import RankFailed
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.errors import UsageError
from siglip_ref.process import owner
from siglip_ref.training.saved import store
from siglip_ref.training.saved.folder import FORMAT, LOCK, MANIFEST, one_training

PROGRAM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from pytest import MonkeyPatch
from training_cases import mini
from siglip_ref.cli.main import main
mini(MonkeyPatch())
main()
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    mini(monkeypatch)


def command(out, *words, steps=4):
    """`siglip-ref train` on the small model, as a process."""
    options = ["train", "--data", "digits", "--model", "mini", "--steps", str(steps), "--batch", "9", "--out", str(out)]
    line = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), *options, *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def picture_folder(place):
    """Twelve captioned pictures."""
    from PIL import Image

    place.mkdir()
    for number in range(12):
        Image.new("RGB", (20, 20), (20 * number, 0, 0)).save(place / f"{number:02}.png")
        (place / f"{number:02}.txt").write_text(f"number {number}\n")
    return place


def test_a_folder_with_other_things_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        alone(tmp_path, steps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    alone(tmp_path, steps=2, force=True)
    assert (tmp_path / "model" / "config.json").read_text() == "mine" and (tmp_path / MANIFEST).is_file()
    assert alone(tmp_path, steps=2).step == 2  # it is a training's folder now


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": "tiny"}, "bytes need"),
        ({"model": "giant"}, "got: +'giant'"),
        ({"data": "nowhere"}, "nothing at this path"),
        ({"freeze": "image"}, "name a checkpoint"),
    ],
)
def test_wrong_use_leaves_no_folder(changes, words, tmp_path):
    """A model without room for bytes once ended in an IndexError, and left a folder behind."""
    with pytest.raises(UsageError, match=words):
        alone(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_two_at_once_are_refused_with_host_and_process(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE", 0.2)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with one_training(tmp_path, print):
            os.write(ready[1], b"!")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(UsageError) as caught:
            alone(tmp_path, steps=2)
    finally:
        os.write(go[1], b"!")
        os.waitpid(child, 0)
    assert f"process {child} on {platform.node()}" in caught.value.got and list(store.checkpoints(tmp_path)) == []
    assert alone(tmp_path, steps=2).step == 2 and (tmp_path / LOCK).read_bytes() == b""


def test_the_same_command_twice_at_the_same_time(tmp_path):
    """One is refused, whichever came second; the other ends as if it had been alone."""
    alone_ = command(tmp_path / "alone", steps=60)
    alone_.communicate(timeout=100)
    both = [command(tmp_path / "both", "--save-every", "1", steps=60) for _ in range(2)]
    said = [process.communicate(timeout=100)[1] for process in both]
    codes = [process.returncode for process in both]
    for code, text in zip(codes, said, strict=True):  # the second may have waited until the first had ended
        assert code == 0 or (code == 2 and "in use by process" in text), (codes, said)
    assert 0 in codes
    same = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("alone", "both")]
    assert same[0] == same[1]


def test_killed_and_started_again_at_once(tmp_path):
    """The lock dies with its process: nobody has to wait or to clean up."""
    for _ in range(3):
        first = command(tmp_path, "--save-every", "1", steps=3000)
        deadline = time.monotonic() + 60
        while len(store.checkpoints(tmp_path / "checkpoints")) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        again = command(tmp_path, "--save-every", "1", steps=3000)  # the first is not even waited for
        time.sleep(0.5)
        while "going on" not in (line := again.stdout.readline()) and line:
            pass
        assert "going on from step" in line, again.communicate()[1]
        for process in (first, again):
            process.kill()
            process.communicate()


@pytest.mark.parametrize("made", [[LOCK], [LOCK, "checkpoints/"], [LOCK, "checkpoints/", f"{MANIFEST}.99.part"]])
def test_killed_before_it_had_its_manifest(made, tmp_path):
    for name in made:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"")
    assert alone(tmp_path, steps=2).step == 2 and not list(tmp_path.glob("*.part"))


def test_a_process_may_train_twice_and_nest(tmp_path):
    with one_training(tmp_path, print), one_training(tmp_path, print):
        pass
    assert alone(tmp_path, steps=2).step == alone(tmp_path, steps=2).step == 2


def test_changed_data_are_refused_with_what_changed(tmp_path):
    photos, out = picture_folder(tmp_path / "photos"), tmp_path / "out"
    chosen = {"data": str(photos), "steps": 4, "batch": 6}
    alone(out, **chosen)
    assert alone(out, **chosen).step == 4
    (photos / "03.png").unlink()
    (photos / "05.txt").write_text("another caption\n")
    (photos / "07.png").write_bytes((photos / "07.png").read_bytes() + b"more")
    (photos / "new.png").write_bytes((photos / "04.png").read_bytes())
    (photos / "new.txt").write_text("new\n")
    with pytest.raises(UsageError) as caught:
        alone(out, **chosen)
    assert caught.value.got == (
        "1 picture new: new.png; 1 picture gone: 03.png; 1 picture of another size: 07.png; "
        "1 picture captioned differently: 05.png"
    )


def test_a_list_in_another_order_is_other_data(tmp_path):
    photos = picture_folder(tmp_path / "photos")
    rows = [f"{n:02}.png,number {n}\n" for n in range(12)]
    listed = photos / "captions.csv"
    listed.write_text("image,caption\n" + "".join(rows))
    alone(tmp_path / "out", data=str(listed), steps=2, batch=6)
    listed.write_text("image,caption\n" + "".join(reversed(rows)))
    with pytest.raises(UsageError, match="the same pictures in another order"):
        alone(tmp_path / "out", data=str(listed), steps=2, batch=6)


def test_other_weights_behind_init_are_refused(tmp_path):
    for seed in (5, 6):
        save_checkpoint(tmp_path / "released", sr.init(MINI, seed, np.float32), MINI)
        if seed == 5:
            alone(tmp_path / "out", init=str(tmp_path / "released"), model="", steps=2)
    with pytest.raises(UsageError, match="other weights in"):
        alone(tmp_path / "out", init=str(tmp_path / "released"), model="", steps=2)


def test_what_a_training_wrote_is_no_data(tmp_path):
    """A training inside the folder of the pictures: its curves.png was a picture of the next run."""
    photos = picture_folder(tmp_path / "photos")
    chosen = {"data": str(photos), "steps": 2, "batch": 6}
    alone(photos / "out", **chosen)
    (photos / "out" / "curves.png").write_bytes((photos / "01.png").read_bytes())
    (photos / "out" / "curves.txt").write_text("curves\n")
    assert alone(photos / "out", **chosen).step == 2


def test_ranks_that_would_go_on_from_different_steps(tmp_path, monkeypatch):
    from siglip_ref.training.saved import resume

    on_ranks(2, tmp_path, steps=4)
    ask = iter([lambda place: store.newest(place), lambda place: (None, [])])

    def newest(place):
        return next(ask)(place)

    monkeypatch.setattr(resume, "newest", newest)
    with pytest.raises(RankFailed) as caught:
        on_ranks(2, tmp_path, steps=4)
    assert "they do not see the same folder" in str(caught.value.__cause__)


def test_the_manifest_says_whose_folder_it_is(tmp_path):
    alone(tmp_path, steps=2)
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert content["format"] == FORMAT and content["settings"] == settings(steps=2).as_dict()


def test_another_picture_of_the_same_size_is_other_data(tmp_path):
    """Its name, its bytes and its caption are the same; the numbers were not."""
    photos = picture_folder(tmp_path / "photos")
    chosen = {"data": str(photos), "steps": 2, "batch": 6}
    alone(tmp_path / "out", **chosen)
    content = bytearray((photos / "03.png").read_bytes())
    content[len(content) // 2] ^= 255
    (photos / "03.png").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        alone(tmp_path / "out", **chosen)
    assert caught.value.got == "1 picture of the same size with other content: 03.png"


def test_other_settings_are_told_in_a_sentence(tmp_path):
    alone(tmp_path, steps=2)
    with pytest.raises(UsageError) as caught:
        alone(tmp_path, steps=2, seed=1)
    assert caught.value.got == "another: seed 0, not 1"
