"""A half of a block with what belongs to another block is told: weights, keys and values."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from siglip_ref.architecture.sizes import config
from siglip_ref.check.model.diagnosis.other_blocks import of_other_blocks
from siglip_ref.check.model.probe import model_probe
from siglip_ref.check.model.reference import reference
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import subtree
from siglip_ref.report.data import Finding

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
    run = SimpleNamespace(activations=RIGHT.activations | {name: value})
    judge = SimpleNamespace(exact=RIGHT, of_value=defaultdict(lambda: 1e-9))
    [found] = of_other_blocks([Finding("unknown", name, "", "", "")], run, judge, PROBE, CFG, CFG.conventions)
    return found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: attention(normed("block00"), ("k/", "v/")),
         "in place of its own, by the weights attn/k, attn/v of text/block00"),
        (lambda: attention(normed("block00")), "that come into text/block00, normed there, in place of its own"),
        (lambda: attention(normed("block01"), ("q/",)), "computed with the weights attn/q of text/block00"),
    ],
)  # fmt: skip
def test_another_blocks_part_is_told(value, said):
    found = told("text/block01/+attn", value())
    assert found.id == "derived" and said in found.evidence


def test_what_is_of_no_block_is_not_told():
    assert told("text/block01/+attn", attention(2 * normed("block01"))).id == "unknown"
