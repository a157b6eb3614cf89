"""Search: exact, added and subtracted, with the model of the index and no other; what is printed reads back equal."""

import csv
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from search_cases import content, make_model, make_photos, run

from siglip_ref.ops.elementary import sigmoid
from siglip_ref.use.load import load
from siglip_ref.use.search.build import build
from siglip_ref.use.search.query import Query, best, search, similarities_of, vector_of

STRANGE = ['a "b",c.png', "new\nline.png", " blank .png", "ü ☃.png", os.fsdecode(b"latin\xe9.png"), "r\rn.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, photos, their index."""
    folder = tmp_path_factory.mktemp("search")
    make_model(folder / "m")
    make_photos(folder / "photos")
    for number, name in enumerate(STRANGE):
        Image.new("RGB", (30, 30), (40 * number, 200, 99)).save(folder / "photos" / name, "PNG")
    build(folder / "photos", folder / "photos.index", str(folder / "m"))
    return folder


@pytest.fixture(scope="module")
def index(place):
    from siglip_ref.use.search.folder import read_index

    return read_index(place / "photos.index")


@pytest.fixture(scope="module")
def model(place):
    return load(place / "m")


def test_a_text_is_the_product_of_all_rows(index, model):
    hits = search(index, model, Query(("a red star",)), top=7)
    want = index.vectors @ model.embed_texts(["a red star"])[0]
    order = np.argsort(-want, kind="stable")[:7]
    assert hits.rows.tolist() == order.tolist() and np.abs(hits.similarities - want[order]).max() < 1e-6
    found = model.zero_shot([index.file(int(hits.rows[0]))], ["a red star"], "{}")
    assert hits.scores[0] == pytest.approx(found.scores[0, 0], rel=1e-4)
    assert hits.scores[3] == pytest.approx(
        sigmoid(np.exp(model.params["log_scale"]) * want[order[3]] + model.params["bias"]), rel=1e-4
    )


def test_queries_add_and_subtract(index, model):
    photo = index.file(3)
    query = Query(("red", "star"), (photo,), ("night",))
    red, star, night = model.embed_texts(["red", "star", "night"])
    total = red + star + index.vectors[3] - night
    assert np.abs(vector_of(query, model) - total / np.linalg.norm(total)).max() < 1e-6
    hits = search(index, model, query, top=5)
    assert hits.scores is None and (np.diff(hits.similarities) <= 0).all()
    assert query.in_words() == f'"red" + "star" + like {photo} - "night"'


def test_a_photo_is_most_like_itself(index, model):
    for row in (0, 5, 22):
        hits = search(index, model, Query(like=(index.file(row),)), top=1)
        assert hits.rows.tolist() == [row] and hits.similarities[0] == pytest.approx(1, abs=1e-5)


def test_the_best_of_many_rows_with_equals():
    rng = np.random.default_rng(0)
    for count, top in ((1, 5), (50, 50), (3000, 20), (3000, 1)):
        values = rng.integers(0, 40, count).astype(np.float32)
        want = sorted(range(count), key=lambda row: (-values[row], row))[:top]
        assert best(values, top).tolist() == want
        assert best(values, top, 30).tolist() == [row for row in want if values[row] >= 30]
    rows = rng.normal(size=(70_000, 8)).astype(np.float32)
    unit = rows[0] / np.linalg.norm(rows[0])
    assert np.abs(similarities_of(rows, unit) - rows @ unit).max() < 1e-5


def test_the_command(place, capfd, monkeypatch):
    monkeypatch.chdir(place)
    code, out, _ = run(capfd, "search", "photos.index", "a red star", "-t", 4)
    assert code == 0 and out.count("photos/") == 4 and out.count("a sigmoid") == 1 and "4 of 29 photos" in out
    assert run(capfd, "search", "photos", "a red star", "--top", 4)[1] == out  # the index beside the folder
    code, out, _ = run(capfd, "search", "photos", "--like", "photos/day 0/000.png", "-t", 2, "-f")
    assert code == 0 and out.splitlines()[0] == "photos/day 0/000.png" and len(out.splitlines()) == 2
    code, out, _ = run(capfd, "search", "photos", "red", "--not", "star", "--threshold", 2)
    assert code == 0 and "nothing reaches" in out and "there is\nno score" in out


def test_json_and_csv_read_back_equal(place, capfdbinary, index, model):
    everything = {os.path.abspath(index.file(row)): row for row in range(len(index.photos))}
    hits = search(index, model, Query(("star",)), top=100)
    for form in ("--json", "--csv"):
        run_bytes = run_raw(capfdbinary, "search", place / "photos.index", "star", "-t", 100, form)
        if form == "--json":
            content = json.loads(run_bytes)
            rows = [(photo["path"], photo["similarity"], photo["score"]) for photo in content["photos"]]
            assert content["query"] == {"texts": ["star"], "like": [], "not": []} and content["of"] == 29
        else:
            text = io.StringIO(run_bytes.decode("utf-8", "surrogateescape"), newline="")
            table = list(csv.reader(text))
            assert table[0] == ["path", "similarity", "score"]
            rows = [(path, float(similarity), float(score)) for path, similarity, score in table[1:]]
        assert [everything[os.path.abspath(path)] for path, _, _ in rows] == hits.rows.tolist()
        assert [similarity for _, similarity, _ in rows] == hits.similarities.tolist()
        assert [score for _, _, score in rows] == hits.scores.tolist()
    paths = run_raw(capfdbinary, "search", place / "photos.index", "star", "-t", 100, "-f")
    assert b"latin\xe9.png\n" in paths


def run_raw(capfdbinary, *words):
    code, out, _ = run(capfdbinary, *words)
    assert code == 0
    return out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "star"], "nothing at"),
        (["photos"], "nothing is said of what is looked for"),
        (["photos", "--not", "star"], "nothing is said of what is looked for"),
        (["photos", "star", "--not", "star"], "cancel"),
        (["photos", "--like", "photos/broken.jpg"], "broken"),
        (["photos", "--like", "none.png"], "No such file"),
        (["photos", "star", "--json", "--csv"], "one standard output"),
        (["m", "star"], "no index of it was made yet"),
        (["m/config.json", "star"], "an index, as siglip-ref index makes it"),
    ],
)
def test_wrong_use(words, said, place, capfd, monkeypatch):
    monkeypatch.chdir(place)
    before = content(place)
    code, _, err = run(capfd, "search", *words)
    assert code == 2 and said in " ".join(err.replace("│", " ").split()), err
    assert content(place) == before


def test_another_model_than_the_index_is_refused(tmp_path, capfd):
    make_photos(tmp_path / "photos", 3)
    make_model(tmp_path / "m")
    assert run(capfd, "index", tmp_path / "photos", "--model", tmp_path / "m")[0] == 0
    make_model(tmp_path / "m", seed=5)
    code, _, err = run(capfd, "search", tmp_path / "photos", "star")
    assert code == 2 and "the model has changed since" in " ".join(err.replace("│", " ").split())


def test_without_an_index_it_offers_to_make_one(tmp_path, capfd, monkeypatch):
    from siglip_ref.cli import search as command

    make_photos(tmp_path / "photos", 3)
    make_model(tmp_path / "m")
    code, _, err = run(capfd, "search", tmp_path / "photos", "star", "--model", tmp_path / "m")
    assert code == 2 and "siglip-ref index" in err and not (tmp_path / "photos.index").exists()
    monkeypatch.setattr(command, "is_asked", lambda: True)
    monkeypatch.setattr(command.typer, "confirm", lambda *given, **more: True)
    code, out, _ = run(capfd, "search", tmp_path / "photos", "star", "--model", tmp_path / "m")
    assert code == 0 and "of 3 photos" in out
