"""Images as transformers' processors prepare them: ours are the same bit for bit."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from siglip_ref.use.preprocess import PREPROCESS, patches, pixels, read_settings

sys.path.insert(0, str(Path(__file__).parent.parent / "preprocess"))
from pictures import SIZES, image  # beside the tests of preprocessing

MODES = ("RGB", "L", "CMYK", "RGBA", "P")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_fixed_size(mode, resample):
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=resample, do_convert_rgb=True)
    how = read_settings(processor.to_dict(), PREPROCESS["huggingface"])
    for size in SIZES:
        given = image(*size).convert(mode)
        theirs = processor(images=[given], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        ours = pixels(given, (32, 32), how)
        assert ours.dtype == theirs.dtype == np.float32
        assert np.array_equal(ours, theirs)


def test_other_means_and_deviations():
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    processor = SiglipImageProcessorPil(size={"height": 24, "width": 24}, image_mean=mean, image_std=std)
    how = read_settings(processor.to_dict(), PREPROCESS["huggingface"])
    theirs = processor(images=[image(37, 53)], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(pixels(image(37, 53), (24, 24), how), theirs)


@pytest.mark.parametrize("most", [7, 64, 256])
def test_naflex_on_many_shapes(most):
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=most)
    how = replace(read_settings(processor.to_dict(), PREPROCESS["huggingface-2"]), max_patches=most)
    rng = np.random.default_rng(2)
    sizes = [*SIZES, *map(tuple, rng.integers(1, 300, (12, 2))), (1, 300), (300, 1)]
    for height, width in sizes:
        given = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = processor(images=[given], return_tensors="np")
        values, grid = patches(given, 4, how)
        assert grid == tuple(theirs["spatial_shapes"][0])
        assert np.array_equal(values, theirs["pixel_values"][0])
        assert theirs["pixel_attention_mask"][0].sum() == grid[0] * grid[1]
