"""check_step on an open_clip model, trained as open_clip trains: its loss, its choice of what decays."""

import torch
from no_torchvision import import_open_clip

import siglip_ref as sr
from siglip_ref.model.optim import matrices

open_clip, _ = import_open_clip()

from test_model_open_clip import build  # noqa: E402  # it imports open_clip itself

RULE = sr.AdamW(lr=5e-4, beta2=0.98, eps=1e-6, decay=0.2, max_norm=1.0, decays=matrices)


def make(clip_norm=1.0):
    model = build()
    loss_of = open_clip.loss.SigLipLoss()
    named = list(model.named_parameters())
    kept = [p for name, p in named if p.ndim < 2 or "pos_embed" in name or "positional_embedding" in name]
    decayed = [p for _, p in named if all(p is not other for other in kept)]
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(*model(images, tokens)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()

    return {"step_fn": step, "rule": RULE, "model": model}


def test_its_training_step_passes():
    report = sr.check_step(**make())
    assert report.verdict == "PASS", report


def test_another_limit_of_the_clip_is_told():
    report = sr.check_step(**make(clip_norm=0.5))
    assert report.verdict == "OTHER CONVENTION"
    assert "max_norm=0.5" in report.findings[0].evidence
