"""Planted pairs are found, all of them and no others; groups are joined; nothing is deleted."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from search_cases import content, make_model, run

from siglip_ref.errors import UsageError
from siglip_ref.use.search import duplicates as module
from siglip_ref.use.search.duplicates import duplicates


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def planted(count, pairs, dim=32, seed=0):
    """Random rows, some of which are others again with a little noise: cosine about 0.995; the pairs."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.normal(size=(count, dim)))
    chosen = rng.permutation(count)[: 2 * pairs].reshape(-1, 2)
    rows[chosen[:, 1]] = unit(rows[chosen[:, 0]] + 0.1 / np.sqrt(dim) * rng.normal(size=(pairs, dim)))
    return rows, {tuple(sorted(pair)) for pair in chosen.tolist()}


@pytest.mark.parametrize("piece", [7, 64, 2048])
def test_planted_pairs_are_found_whatever_the_tiles(piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    rows, pairs = planted(500, 40)
    groups = duplicates(rows, 0.98)
    assert {tuple(group.rows) for group in groups} == pairs
    cosines = rows.astype(float) @ rows.T.astype(float)
    assert all(group.similarities[1] == pytest.approx(cosines[tuple(group.rows)], abs=1e-6) for group in groups)


def test_a_chain_is_one_group():
    angles = np.array([0.0, 0.15, 0.3, 0.45, 2.0, 2.1])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    groups = duplicates(rows, 0.98)
    assert [group.rows for group in groups] == [[0, 1, 2, 3], [4, 5]]
    assert groups[0].similarities[3] < 0.98
    assert duplicates(rows[:1], 0.98) == duplicates(rows[:0], 0.98) == []
    with pytest.raises(UsageError, match="cosine"):
        duplicates(rows, 1.5)


def test_the_command(tmp_path, capfd, monkeypatch):
    make_model(tmp_path / "m")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        rough = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = rough.resize((90, 90), Image.Resampling.BICUBIC)
        image.save(tmp_path / "photos" / f"{number}.png")
    image.save(tmp_path / "photos" / "again, smaller.jpg", quality=97)
    (tmp_path / "photos" / "copy.png").write_bytes((tmp_path / "photos" / "5.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(capfd, "index", "photos", "--model", "m")[0] == 0
    before = content(tmp_path / "photos")
    code, out, _ = run(capfd, "duplicates", "photos", "--similarity", 0.999, "--html", "d.html")
    assert code == 0 and "1 group of" in out and " 2 beyond" in out and "copy.png  (the same file)" in out
    assert "group 1: 3 photos" in (tmp_path / "d.html").read_text()
    table = list(csv.DictReader(io.StringIO(run(capfd, "duplicates", "photos", "--similarity", 0.999, "--csv")[1])))
    assert [row["path"] for row in table] == ["photos/5.png", "photos/again, smaller.jpg", "photos/copy.png"]
    found = json.loads(run(capfd, "duplicates", "photos", "--similarity", 0.999, "--json")[1])
    assert [photo["path"] for photo in found["groups"][0]] == [row["path"] for row in table]
    out = run(capfd, "duplicates", "photos.index", "--similarity", 0.999, "-f")[1]
    assert out.splitlines() == ["photos/again, smaller.jpg", "photos/copy.png"]
    assert run(capfd, "duplicates", "photos", "--html", "d.html")[0] == 2  # is there already
    assert content(tmp_path / "photos") == before
