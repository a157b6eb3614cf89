"""An index: only what changed is read, killed or not it is the same bytes, nothing of the user's is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from search_cases import content, make_model, make_photos, run

from siglip_ref.errors import UsageError
from siglip_ref.process import owner
from siglip_ref.use import reading
from siglip_ref.use.load import load
from siglip_ref.use.search import build as building
from siglip_ref.use.search import folder, photos
from siglip_ref.use.search.build import build
from siglip_ref.use.search.folder import read_index


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
def pictures(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture
def opened(monkeypatch):
    """Every file that is opened as an image or read for its digest."""
    seen = []
    read, digest = reading.open_image, photos.digest_of

    def watched(source, least=None):
        seen.append(str(source))
        return read(source, least)

    def hashed(file):
        seen.append(str(file))
        return digest(file)

    monkeypatch.setattr(reading, "open_image", watched)
    monkeypatch.setattr(photos, "digest_of", hashed)
    monkeypatch.setattr(building, "digest_of", hashed)
    return seen


def test_rows_are_those_of_embed_images(model, pictures, tmp_path):
    built = build(pictures, tmp_path / "index", str(model))
    index = built.index
    files = [str(index.file(row)) for row in range(len(index.photos))]
    found = load(model).embed_images(files)
    assert files == found.names and len(files) == 23
    assert np.abs(index.vectors - found.embeddings).max() < 1e-6
    assert [photo.path for photo in built.unreadable] == ["broken.jpg", "day 1/cut.png"]
    assert built.embedded == 25 and built.changed and not (tmp_path / "index" / folder.WORK).exists()
    assert np.array_equal(np.load(next((tmp_path / "index").glob("vectors-*.npy"))), index.vectors)


def test_large_jpegs_are_decoded_small_and_nearly_the_same(model, tmp_path):
    (tmp_path / "photos").mkdir()
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    rough.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "photos" / "large.jpg")
    index = build(tmp_path / "photos", tmp_path / "index", str(model)).index
    exact = load(model).embed_images(tmp_path / "photos").embeddings
    assert 0.999 < float(exact[0] @ index.vectors[0]) < 1 - 1e-9


def test_a_second_run_reads_nothing(model, pictures, tmp_path, opened):
    build(pictures, tmp_path / "index", str(model))
    before, at = content(tmp_path / "index"), (tmp_path / "index" / "index.json").stat().st_mtime_ns
    assert len([file for file in opened if "photos" in file]) == 2 * 25 + 8  # digest and image; 8 are timed first
    opened.clear()
    built = build(pictures, tmp_path / "index", str(model))
    assert not opened and built.embedded == 0 and built.kept == 25 and not built.changed
    assert content(tmp_path / "index") == before and (tmp_path / "index" / "index.json").stat().st_mtime_ns == at


def test_only_what_changed_is_read_and_what_is_gone_drops_out(model, pictures, tmp_path, opened):
    build(pictures, tmp_path / "index", str(model))
    new, changed, touched = pictures / "aaa.png", pictures / "day 0" / "006.png", pictures / "day 2" / "002.png"
    Image.new("RGB", (33, 44), "red").save(new)
    Image.new("RGB", (55, 44), "blue").save(changed)
    os.utime(touched, ns=(1, 1))
    (pictures / "day 1" / "004.png").unlink()
    shutil.move(pictures / "day 2" / "008.png", pictures / "moved.png")
    opened.clear()
    built = build(pictures, tmp_path / "index", str(model))
    assert built.embedded == 2 and built.gone == 2
    assert {os.path.basename(file) for file in opened} == {"aaa.png", "006.png", "002.png", "moved.png"}
    fresh = build(pictures, tmp_path / "fresh", str(model)).index
    assert built.index.photos == fresh.photos
    assert np.abs(built.index.vectors - fresh.vectors).max() < 1e-6
    assert len(list((tmp_path / "index").glob("vectors-*"))) == 1


def indexing(how, pictures, out, model, *rest):
    """Started, and about to begin."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("killed.py")),
        how,
        *map(str, (pictures, out, model, *rest)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begins\n"
    return process


def test_killed_at_any_instant_it_ends_with_the_same_bytes(model, tmp_path, monkeypatch):
    """Shards of 5, and a wait in each batch, so that there is an instant to hit."""
    monkeypatch.setattr(building, "SHARD", 5)
    pictures = make_photos(tmp_path / "photos", 60)
    build(pictures, tmp_path / "whole", str(model), batch=2, threads=1)
    want, rng, killed, saved = content(tmp_path / "whole"), np.random.default_rng(3), 0, set()
    for _ in range(8):
        with indexing("slow", pictures, tmp_path / "index", model) as process:
            time.sleep(rng.uniform(0.02, 0.3))
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        now = {file.name for file in (tmp_path / "index").glob("*.work/*.npy")}
        assert saved <= now or (tmp_path / "index" / "index.json").exists()  # nothing that was saved is lost
        saved = now
    with indexing("slow", pictures, tmp_path / "index", model) as process:
        assert process.wait(120) == 0
    assert content(tmp_path / "index") == want and killed >= 4


def test_killed_while_it_is_put_in_place_it_is_the_old_or_the_new_one(model, pictures, tmp_path, monkeypatch):
    build(pictures, tmp_path / "index", str(model))
    old = read_index(tmp_path / "index").photos
    (pictures / "day 0" / "000.png").unlink()
    writes = folder.write_atomically
    for allowed in range(3):
        count = iter(range(10))

        def stops(path, data, count=count, allowed=allowed):
            if next(count) == allowed:
                raise KeyboardInterrupt
            writes(path, data)

        monkeypatch.setattr(folder, "write_atomically", stops)
        with pytest.raises(KeyboardInterrupt):
            build(pictures, tmp_path / "index", str(model))
        assert read_index(tmp_path / "index").photos == old
    monkeypatch.setattr(folder, "write_atomically", writes)
    build(pictures, tmp_path / "index", str(model))
    build(pictures, tmp_path / "fresh", str(model))
    assert content(tmp_path / "index") == content(tmp_path / "fresh")


@pytest.mark.parametrize("kill", range(4))
def test_killed_while_the_first_one_is_put_in_place(kill, model, pictures, tmp_path):
    """The folder then held files that no index.json named, and was refused as somebody else's."""
    with indexing("dies", pictures, tmp_path / "index", model, kill) as process:
        assert process.wait(120) == -signal.SIGKILL
    assert build(pictures, tmp_path / "index", str(model)).embedded == 0
    build(pictures, tmp_path / "fresh", str(model))
    assert content(tmp_path / "index") == content(tmp_path / "fresh")


@pytest.mark.parametrize("damage", ["cut", "lost", "not a table"])
def test_a_damaged_shard_is_made_anew(damage, model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD", 5)
    whole = build(pictures, tmp_path / "whole", str(model)).index
    save, calls = folder.Work.save, iter(range(100))

    def stops(self, *given):
        if next(calls) == 3:
            raise KeyboardInterrupt
        save(self, *given)

    monkeypatch.setattr(folder.Work, "save", stops)
    with pytest.raises(KeyboardInterrupt):
        build(pictures, tmp_path / "index", str(model))
    monkeypatch.setattr(folder.Work, "save", save)
    shard = sorted((tmp_path / "index" / folder.WORK).glob("*.npy"))[1]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:200])
    elif damage == "lost":
        shard.with_suffix(".csv").unlink()
    else:
        shard.with_suffix(".csv").write_text("path\nx\n")
    built = build(pictures, tmp_path / "index", str(model))
    assert built.embedded == 15 and np.abs(built.index.vectors - whole.vectors).max() < 1e-6


def test_the_command(model, pictures, tmp_path, capfd):
    code, out, err = run(capfd, "index", pictures, "--model", model)
    assert code == 0 and "23 photos" in out and "2 cannot be read" in out
    assert "25 pictures" in err and "about" in err and "the same command goes on" in err and "images/s" in err
    assert "broken.jpg: " in err and "cut.png: " in err
    code, out, err = run(capfd, "index", pictures, "--model", model)
    assert code == 0 and "nothing has changed" in out and "0 to embed, 25 known" in err


def test_names_as_bytes_and_signs_come_back_equal(model, tmp_path, capfd):
    names = ['a "b",c.png', "new\nline.png", " blank .png", "ü ☃.png", os.fsdecode(b"latin\xe9.png"), "r\rn.png"]
    (tmp_path / "photos" / "fol,der").mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (30, 30), (40 * number, 0, 0)).save(tmp_path / "photos" / "fol,der" / name, "PNG")
    index = build(tmp_path / "photos", tmp_path / "index", str(model)).index
    assert sorted(photo.path for photo in index.photos) == sorted(f"fol,der/{name}" for name in names)
    assert build(tmp_path / "photos", tmp_path / "index", str(model)).embedded == 0


def test_no_photo_at_all_and_none_that_can_be_read(model, tmp_path, capfd):
    (tmp_path / "photos").mkdir()
    assert run(capfd, "index", tmp_path / "photos", "--model", model)[0] == 2
    (tmp_path / "photos" / "a.jpg").touch()
    code, out, err = run(capfd, "index", tmp_path / "photos", "--model", model)
    assert code == 2 and "0 photos" in out and "empty file" in err
    assert read_index(tmp_path / "photos.index").vectors.shape == (0, 32)


def refused(words, *given, **more):
    with pytest.raises(UsageError, match=words):
        build(*given, **more)


def test_what_would_lose_something_is_refused(model, pictures, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    refused("there already", pictures, mine, str(model))
    assert content(mine) == {"letter.txt": b"dear"}
    own = ("vectors-1.npy", "photos-2020.csv", "index.work/a.npy", "index.work/b", "x.part", "photos-2020.csv.1.part")
    (mine / "index.work").mkdir()
    for name in own:
        (mine / name).write_text(name)
    build(pictures, mine, str(model), force=True)
    assert all((mine / name).read_text() == name for name in own)
    build(pictures, tmp_path / "index", str(model))
    before = content(tmp_path / "index")
    other = make_model(tmp_path / "other", seed=1)
    refused("another model was named", pictures, tmp_path / "index", str(other))
    refused("an index is of one folder", make_photos(tmp_path / "others", 3), tmp_path / "index", str(model))
    shutil.move(pictures, tmp_path / "unmounted")
    pictures.mkdir()
    refused("not mounted", pictures, tmp_path / "index", str(model))
    refused("nothing at", tmp_path / "nowhere", tmp_path / "index", str(model))
    assert content(tmp_path / "index") == before
    pictures.rmdir()
    shutil.move(tmp_path / "unmounted", pictures)
    assert build(pictures, tmp_path / "index", str(other), force=True).embedded == 25


def test_a_folder_that_cannot_be_entered_keeps_its_photos(model, pictures, tmp_path, monkeypatch):
    build(pictures, tmp_path / "index", str(model))
    walk = os.walk

    def blocked(top, onerror=None):
        for place, folders, files in walk(top):
            if "day 1" in folders:
                folders.remove("day 1")
                onerror(PermissionError(13, "no", os.path.join(place, "day 1")))
            yield place, folders, files

    monkeypatch.setattr(os, "walk", blocked)
    said = []
    built = build(pictures, tmp_path / "index", str(model), say=said.append)
    assert built.gone == 0 and not built.changed and any("day 1" in line for line in said)


@pytest.mark.parametrize("damage", ["vectors", "photos", "index.json"])
def test_a_damaged_index_is_said(damage, model, pictures, tmp_path):
    build(pictures, tmp_path / "index", str(model))
    file = next((tmp_path / "index").glob(f"{damage}*"))
    if damage == "index.json":
        about = json.loads(file.read_text())
        file.write_text(json.dumps({"format": about["format"]}))
    else:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="a whole index"):
        read_index(tmp_path / "index")


def test_two_at_once_are_refused(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE", 0.1)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with owner.one_owner(tmp_path / "index", folder.LOCK, "index", "", print):
            os.write(ready[1], b"!")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        refused(f"process {child}", pictures, tmp_path / "index", str(model))
    finally:
        os.write(go[1], b"!")
        os.waitpid(child, 0)
