"""Small models of other projects, and what the tests say about all of them."""

from dataclasses import replace

import torch
from transformers import SiglipModel

import siglip_ref as sr
from siglip_ref.check.model.adapters.huggingface import make_config

TINY = replace(sr.config("tiny"), image_size=(20, 20))
DTYPES = ("float64", "float32", "bfloat16", "float16")


def wide():
    """Width, heads and MLP of B/16, two blocks, small image and vocabulary."""
    base = sr.config("B/16-256")
    image, text = replace(base.image, depth=2), replace(base.text, depth=2)
    return replace(base, image=image, text=text, image_size=(64, 64), text_length=16, vocabulary=997)


def hugging_face(cfg=TINY, attention="sdpa", **changes):
    """A SiglipModel; `changes` go to both towers' configurations."""
    config = make_config(cfg)
    for part in (config.vision_config, config.text_config):
        for name, value in changes.items():
            setattr(part, name, value)
    torch.manual_seed(0)
    return SiglipModel._from_config(config, attn_implementation=attention)


def require_pass(report, dtype, limit=1e-11):
    """PASS, with room: no tensor uses more than half of what is allowed; in float64 within `limit`."""
    assert report.verdict == "PASS", report
    assert not report.findings
    judged = [row for row in report.rows if row.verdict != "not checked"]
    assert max(row.excess for row in judged) <= 0.5, max(judged, key=lambda row: row.excess)
    if dtype == "float64":
        assert all(row.error <= limit for row in judged)
