"""A half of a block with what belongs to another block is told: weights, keys and values."""

import numpy as np
import pytest

from siglip_ref.architecture.sizes import config
from siglip_ref.check.model.diagnosis.stages.offers import wholes_of
from siglip_ref.check.model.diagnosis.stages.stage_search import Ground, Stage
from siglip_ref.check.model.probe import model_probe
from siglip_ref.check.model.reference import reference
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import subtree

CFG = config("tiny")
PROBE = model_probe(CFG, 2, "float64")
RIGHT = reference(PROBE, CFG, CFG.conventions, np.float64)
X = {block: RIGHT.activations[name] for block, name in (("block00", "text/stem"), ("block01", "text/block00/+mlp"))}


def normed(block, norm="norm1", x=None):
    weights = subtree(PROBE.params, f"text/{block}/{norm}")
    x = X[block] if x is None else x
    return SPECIFICATION.layer_norm.forward(x, weights["gamma"], weights["beta"], CFG.conventions.text_norm_eps)[0]


def attention(keys, taken=()):
    own, other = (subtree(PROBE.params, f"text/{block}/attn") for block in ("block01", "block00"))
    weights = own | {name: w for name, w in other.items() if name.startswith(taken)} if taken else own
    return X["block01"] + SPECIFICATION.attention.forward(normed("block01"), keys, weights, CFG.text.heads)[0]


def told(name, value):
    stage = Stage(name, Ground(PROBE, RIGHT.activations | {name: value}), CFG, CFG.conventions)
    found = stage.search(1e-9, wholes_of(stage), pairs=False)
    return found and found.edits[0].now


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: attention(normed("block00"), ("k/", "v/")), "normed there, by the weights of k and v there"),
        (lambda: attention(normed("block00")), "of the tokens that come into text/block00, normed there"),
        (lambda: attention(normed("block01"), ("q/",)), "attn/q of this half of the block are those of text/"),
    ],
)  # fmt: skip
def test_another_blocks_part_is_told(value, said):
    assert said in told("text/block01/+attn", value())


def test_what_is_of_no_block_is_not_told():
    rng = np.random.default_rng(0)
    assert told("text/block01/+attn", attention(normed("block01") + rng.standard_normal(X["block01"].shape))) is None
