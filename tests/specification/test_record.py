"""The record of operations: what is replaced in it is felt everywhere, and nowhere else."""

import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref import fast, ops
from siglip_ref.fast.towers import TowerCache
from siglip_ref.model.specification import SPECIFICATION, chosen
from siglip_ref.ops.elementary import subtree
from siglip_ref.ops.record import Pair

CFG = sr.config("tiny")
PACKAGE = Path(sr.__file__).parent
INPUTS = (sr.init(CFG), np.ones((2, *CFG.image_size, 3)), np.ones((2, CFG.text_length), int), CFG)


def counted(pair, calls):
    """The same pair, which notes when it is called."""

    def forward(*given):
        calls.append("forward")
        out = pair.forward(*given)
        # beside results, activations by name: its cache, an array or a tuple with names
        assert any(hasattr(x, "_fields") for x in out) or [type(x) for x in out] == [np.ndarray] * 2
        return out

    def backward(*given):
        calls.append("backward")
        return pair.backward(*given)

    return Pair(forward, backward)


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("linear", 4 * 6 + 6 + 1 + 1),  # of four blocks, of the head that pools, of the patches, of the text head
        ("layer_norm", 4 * 2 + 2 + 1),
        ("gelu", 4 + 1),
        ("softmax", 4 + 1),
        ("attention", 4 + 1),
        ("mlp", 4 + 1),
        ("position", 2),
        ("patch_embed", 1),
        ("token_embed", 1),
        ("pool", 1),
        ("map_head", 1),
        ("normalize", 2),
        ("block", 4),
        ("encoder", 2),
        ("image_tower", 1),
        ("text_tower", 1),
    ],
)
def test_what_is_replaced_is_called_by_all_that_are_made_of_it(name, times):
    assert CFG.image.depth + CFG.text.depth == 4
    calls = []
    changed = replace(SPECIFICATION, **{name: counted(getattr(SPECIFICATION, name), calls)})
    loss, grads = sr.loss_and_grads(*INPUTS, ops=changed)
    assert (calls.count("forward"), calls.count("backward")) == (times, times)
    wanted, of_all = sr.loss_and_grads(*INPUTS)
    assert loss == wanted and all(np.array_equal(grads[name], of_all[name]) for name in of_all)
    assert len(calls) == 2 * times  # the specification itself has not changed


def test_every_operation_has_a_field():
    names = {field.name for field in fields(SPECIFICATION)}
    pairs = {name.removesuffix("_backward") for name in ops.__all__ if name.endswith("_backward")}
    assert pairs <= names and {"pair_block", "softmax_loss", "softplus", "sigmoid"} <= names


def test_a_record_is_frozen():
    with pytest.raises(FrozenInstanceError):
        SPECIFICATION.softmax = SPECIFICATION.gelu


def test_modules_and_records_are_chosen_alike():
    assert chosen(None) is chosen(ops) is chosen(SPECIFICATION) is SPECIFICATION
    assert chosen(fast) is fast.OPS and fast.OPS.compiled
    with pytest.raises(sr.UsageError, match="replace"):
        sr.sigmoid_loss(np.eye(2), np.eye(2), 1.0, 0.0, ops=SimpleNamespace(pair_block=ops.pair_block))


def test_a_narrow_tower_of_the_twins_is_one_kernel():
    params, images, tokens, cfg = INPUTS
    for tower, given in ((fast.OPS.image_tower, images), (fast.OPS.text_tower, tokens)):
        name = "image" if given is images else "text"
        assert isinstance(tower.forward(given, subtree(params, name), cfg, cfg.conventions)[1], TowerCache)


def test_the_specification_does_not_ask_who_computes():
    paths = [*(PACKAGE / "ops").glob("*.py"), *(PACKAGE / "model").glob("*.py")]
    # the record itself looks at its functions; where a caller's namespace becomes a record, fast is one of them
    texts = [path.read_text() for path in paths if path.name not in ("record.py", "specification.py", "loss.py")]
    assert not [text for text in texts if re.search(r"hasattr\(|getattr\(|siglip_ref\.fast", text)]
    everything = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert "hasattr(ops" not in everything and "__import__" not in everything
