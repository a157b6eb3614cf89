"""Patches as vectors: each is the attention pooling of itself alone; the heat map keeps the photo's shape."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from search_cases import CFG, make_model, run

import siglip_ref as sr
from siglip_ref.model.image import image_tower_forward
from siglip_ref.model.naflex import Patches, naflex_tower_forward
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import subtree
from siglip_ref.ops.map_head import map_head_forward
from siglip_ref.use.inference import best_ops, patch_embeddings, text_embeddings, text_features
from siglip_ref.use.load import load
from siglip_ref.use.search.heatmap import as_png, peak, similarity_map, smooth

RNG = np.random.default_rng(0)


def one_by_one(tokens, params, cfg):
    """The pooling of each token as the only key, normalised."""
    head, how = subtree(params, "image/pool"), cfg.conventions
    rows = [
        map_head_forward(
            token[None, None], head, cfg.image.heads, how.image_gelu, how.image_norm_eps, ops=SPECIFICATION
        )
        for token in tokens
    ]
    found = np.concatenate([row for row, _ in rows])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("ops", [SPECIFICATION, best_ops()], ids=["specification", "twins"])
def test_a_patch_is_the_pooling_of_itself_alone(ops):
    params = sr.init(CFG, seed=2, dtype=np.float32)
    images = RNG.uniform(-1, 1, (2, *CFG.image_size, 3)).astype(np.float32)
    states = image_tower_forward(images, subtree(params, "image"), CFG, CFG.conventions, ops=SPECIFICATION)[2]
    found = patch_embeddings(params, images, CFG, ops)
    assert found.shape == (2, CFG.patches, CFG.embed)
    for image in range(2):
        assert np.abs(found[image] - one_by_one(states["norm"][image], params, CFG)).max() < 2e-6


def test_naflex_keeps_the_shape_of_the_photo(tmp_path):
    cfg = replace(CFG, naflex=True, name="naflex")
    params = sr.init(cfg, seed=2, dtype=np.float32)
    values = RNG.uniform(-1, 1, (1, 12, cfg.patch**2 * 3)).astype(np.float32)
    images = Patches(values, np.array([(2, 5)]))
    states = naflex_tower_forward(images, subtree(params, "image"), cfg, cfg.conventions, ops=SPECIFICATION)[2]
    found = patch_embeddings(params, images, cfg, SPECIFICATION)[0, :10]
    assert np.abs(found - one_by_one(states["norm"][0, :10], params, cfg)).max() < 2e-6
    model = load(make_model(tmp_path / "m"))
    wide = replace(model, config=cfg, params=params, ops=SPECIFICATION)
    found = similarity_map(wide, Image.new("RGB", (300, 100), "red"), "red")
    rows, columns = found.shape
    assert columns > 2 * rows and rows * columns <= 256
    picture = Image.open(io.BytesIO(as_png(Image.new("RGB", (300, 100)), found)))
    assert picture.size == (384, 128)


def test_text_features_are_what_the_head_is_given():
    params = sr.init(CFG, seed=2, dtype=np.float32)
    tokens = RNG.integers(3, 200, (3, CFG.text_length))
    features = text_features(params, tokens, CFG, SPECIFICATION)
    found = features @ params["text/head/kernel"] + params["text/head/bias"]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert np.abs(found - text_embeddings(params, tokens, CFG, SPECIFICATION)).max() < 1e-6


def test_the_peak_is_where_the_map_is_largest():
    map_ = np.zeros((4, 6), np.float32)
    map_[1, 4] = 1
    x, y = peak(map_)
    assert abs(x - 4.5 / 6) < 0.03 and abs(y - 1.5 / 4) < 0.03
    assert smooth(map_, (40, 60)).shape == (40, 60)


def test_the_picture_is_light_where_it_fits():
    map_ = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    pixels = np.asarray(Image.open(io.BytesIO(as_png(Image.new("RGB", (500, 400), (90, 90, 90)), map_))), float)
    assert pixels.shape == (400, 500, 3) and pixels[-40:, -40:].mean() > pixels[:40, :40].mean() + 60


def test_the_command(tmp_path, capfd, monkeypatch):
    make_model(tmp_path / "m")
    Image.fromarray(RNG.integers(0, 256, (90, 160, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capfd, "heatmap", "photo.jpg", "the red star", "--model", "m")
    assert code == 0 and "4 x 4 patches" in out and "from the left" in out
    assert Image.open("heatmap.png").size == (384, 216)
    assert run(capfd, "heatmap", "photo.jpg", "the red star", "--model", "m")[0] == 2  # is there already
    words = ("heatmap", "photo.jpg", "star", "--model", "m", "--out", "photo.jpg", "--force")
    code, _, err = run(capfd, *words)
    assert code == 2 and "the input would be lost" in err
    assert run(capfd, "heatmap", "m/config.json", "star", "--model", "m", "--out", "b.png")[0] == 2


def test_all_patches_of_many_images(tmp_path):
    model = load(make_model(tmp_path / "m"), ops=SPECIFICATION)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 60), (80 * number, 9, 9)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").touch()
    found = model.embed_patches(tmp_path / "photos")
    assert [array.shape for array in found.embeddings] == [(4, 4, 32)] * 3 and len(found.skipped) == 1
    assert np.abs(np.linalg.norm(found.embeddings[0], axis=-1) - 1).max() < 1e-6
