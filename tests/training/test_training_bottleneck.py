"""A model with mSigLIP's token table is trained, written, loaded again, and trained further as it is."""

import numpy as np
import pytest
from training_cases import alone, mini, settings, worst

from siglip_ref.errors import UsageError
from siglip_ref.training.data.inputs import read_inputs
from siglip_ref.training.finish import finish
from siglip_ref.training.loop import Quiet
from siglip_ref.training.parallel import Alone
from siglip_ref.use.load import load


@pytest.mark.parametrize("own", [{"data": "digits"}, {"data": "shapes", "recipe": "siglip2"}], ids=["pairs", "recipe"])
def test_it_learns_table_and_matrix_and_is_loaded_as_it_was_written(tmp_path, monkeypatch, own):
    mini(monkeypatch)
    run = alone(tmp_path, **own, steps=6, batch=7, bottleneck=3)
    assert run.params["text/token"].shape == (259, 3) and run.params["text/widen/kernel"].shape == (3, 8)
    for name in ("text/token", "text/widen/kernel"):
        assert worst({name: run.params[name]}, {name: run.task.params[name]})[0] > 1e-3
    finish(run.settings, tmp_path, run, Alone(), Quiet())
    model = load(tmp_path / "model")
    assert model.config.bottleneck == 3
    assert all(np.abs(value - run.params[name]).max() < 1e-6 for name, value in model.params.items())
    checkpoint = str(tmp_path / "model")
    assert read_inputs(settings(init=checkpoint, model=""), 1).cfg.bottleneck == 3
    with pytest.raises(UsageError, match="--bottleneck"):
        read_inputs(settings(init=checkpoint, model="", bottleneck=5), 1)
