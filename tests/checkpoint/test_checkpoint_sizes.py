"""All 27 released sizes: counts, and name maps that are complete; on shapes, real arrays for B/16."""

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.architecture.params import count, shapes
from siglip_ref.architecture.sizes import SIZES
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.checkpoint.tables import big_vision, huggingface, open_clip
from siglip_ref.checkpoint.tables.names import require_match, their_shape

# Source: counted from the shapes in big_vision's configurations; the sizes' model cards round them.
COUNTS = {
    "B/16-224": 203_155_970,
    "B/16-256": 203_202_050,
    "B/16-384": 203_447_810,
    "B/16-512": 203_791_874,
    "L/16-256": 652_150_786,
    "L/16-384": 652_478_466,
    "So400m/14-224": 877_360_306,
    "So400m/14-384": 877_960_498,
    "B/16-i18n-256": 370_626_050,
    "So400m/16-i18n-256": 1_127_430_706,
    "siglip2-B/32-256": 376_856_066,
    "siglip2-B/16-224": 375_187_970,
    "siglip2-B/16-256": 375_234_050,
    "siglip2-B/16-384": 375_479_810,
    "siglip2-B/16-512": 375_823_874,
    "siglip2-L/16-256": 881_526_786,
    "siglip2-L/16-384": 881_854_466,
    "siglip2-L/16-512": 882_313_218,
    "siglip2-So400m/14-224": 1_135_463_602,
    "siglip2-So400m/14-384": 1_136_008_498,
    "siglip2-So400m/16-256": 1_135_670_962,
    "siglip2-So400m/16-384": 1_136_039_602,
    "siglip2-So400m/16-512": 1_136_555_698,
    "siglip2-g-opt/16-256": 1_871_393_906,
    "siglip2-g-opt/16-384": 1_871_885_426,
    "siglip2-B/16-naflex": 375_234_050,
    "siglip2-So400m/16-naflex": 1_135_670_962,
}


def test_every_released_size_is_here_and_counted():
    assert len(COUNTS) == 27
    released = {name: count(cfg) for name, cfg in SIZES.items() if name not in ("tiny", "mu/16")}
    assert released == COUNTS


@pytest.mark.parametrize("name", COUNTS)
def test_name_maps_are_complete(name):
    """Every parameter once, every shape of theirs from ours, and the same number of numbers."""
    cfg = sr.config(name)
    stacked = {f"{encoder}/encoderblock/LayerNorm_0/scale": () for encoder in big_vision.ENCODERS.values()}
    for table in (
        huggingface.table(cfg),
        open_clip.table(cfg),
        big_vision.table(cfg, {}),
        big_vision.table(cfg, stacked),
    ):
        ours = shapes(cfg)
        theirs = {e.theirs: e.shape or their_shape(ours[e.ours], e, cfg.patch) for e in table}
        require_match(table, theirs, cfg)
        assert sum(int(np.prod(shape)) for shape in theirs.values()) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_settings_written_are_settings_read(name):
    cfg = sr.config(name)
    read = huggingface.read_config(huggingface.write_config(cfg))
    for field in ("image", "text", "image_size", "patch", "vocabulary", "text_length", "naflex"):
        assert getattr(read, field) == getattr(cfg, field)


@pytest.mark.parametrize("format", ["huggingface", "big_vision"])
def test_a_b16_is_saved_loaded_and_known_by_name(tmp_path, format):
    """Real arrays of the real size, cheap to draw: constants that differ from tensor to tensor."""
    cfg = sr.config("B/16-256")
    params = {name: np.broadcast_to(np.float32(i / 1000), shape) for i, (name, shape) in enumerate(shapes(cfg).items())}
    file = save_checkpoint(tmp_path / "model", params, cfg, format)
    checkpoint = load_checkpoint(file)
    assert checkpoint.config.name == "B/16-256"
    assert sum(array.size for array in checkpoint.params.values()) == COUNTS["B/16-256"]
    assert all(checkpoint.params[name].flat[0] == value.flat[0] for name, value in params.items())
    assert all(checkpoint.params[name].flat[-1] == value.flat[-1] for name, value in params.items())
