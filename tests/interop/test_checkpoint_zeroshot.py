"""From files to probabilities: transformers' processors, tokeniser and model against ours on the same directory."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import TINY, hugging_face
from test_checkpoint_huggingface import naflex
from transformers import SiglipModel, SiglipTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

import siglip_ref as sr
from siglip_ref import fast
from siglip_ref import ops as specification

sys.path.insert(0, str(Path(__file__).parent.parent / "preprocess"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tokenizer"))
from corpus import TEXTS, like_c4  # the tokeniser's test texts
from pictures import SIZES, image  # and the pictures of preprocessing


def widened(model, seed=3):
    """Random weights large enough that probabilities differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.float().eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """All that a released directory holds."""
    folder = tmp_path_factory.mktemp("siglip")
    (folder / "spiece.model").write_bytes(like_c4())
    vocabulary = SiglipTokenizer(str(folder / "spiece.model")).vocab_size
    cfg = replace(TINY, vocabulary=vocabulary, text_length=64)
    widened(hugging_face(cfg)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 20, "width": 20}, resample=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("ops", [specification, fast], ids=["specification", "fast"])
def test_probabilities_are_those_of_transformers(place, ops):
    pictures, labels = [image(*size) for size in SIZES], [text for text in TEXTS if any(map(str.isalnum, text))]
    texts = [f"This is a photo of {label}." for label in labels]
    tokens = SiglipTokenizer(str(place / "spiece.model"))(texts, padding="max_length", max_length=64, truncation=True)
    values = SiglipImageProcessorPil.from_pretrained(place)(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        model = SiglipModel.from_pretrained(place)
        theirs = model(input_ids=torch.tensor(tokens["input_ids"]), pixel_values=values).logits_per_image
    # a label is stripped here, as spaces at its ends are never meant
    found = sr.load(place, ops=ops).zero_shot(pictures, labels)
    assert found.scores.dtype == np.float32
    stripped = np.array([label == label.strip() for label in labels])
    expected = torch.sigmoid(theirs).numpy()
    assert expected.std() > 0.01
    assert np.abs(found.scores - expected)[:, stripped].max() <= 1e-5


def test_naflex_embeddings_are_those_of_transformers(tmp_path):
    model = widened(naflex())
    model.save_pretrained(tmp_path)
    processor = Siglip2ImageProcessorPil(patch_size=2, max_num_patches=25)
    processor.save_pretrained(tmp_path)
    pictures = [image(*size) for size in SIZES]
    given = processor(images=pictures, return_tensors="pt")
    assert len({tuple(grid) for grid in given["spatial_shapes"].tolist()}) > 3
    with torch.no_grad():
        pooled = model.get_image_features(**given)
        pooled = getattr(pooled, "pooler_output", pooled)
        theirs = pooled / pooled.norm(dim=-1, keepdim=True)
    ours = sr.load(tmp_path).embed_images(pictures, batch=4).embeddings
    assert np.abs(ours - theirs.numpy()).max() <= 1e-5
