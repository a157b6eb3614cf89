"""Hugging Face's own model answers the vector of its conventions."""

import numpy as np
import pytest
from transformers.models.siglip.modeling_siglip import SiglipModel

from siglip_ref.architecture.sizes import config_of
from siglip_ref.check.files.dump import judge
from siglip_ref.check.model.adapters.find import adapter_for
from siglip_ref.check.model.adapters.huggingface import make_config
from siglip_ref.ops.elementary import subtree
from siglip_ref.vectors.store import Vector, packaged


def answer(vector: Vector, dtype: str) -> dict[str, np.ndarray]:
    """What the model gives: values, activations and parameters' gradients; gradients of activations it does not."""
    model = SiglipModel._from_config(
        make_config(config_of(vector.all_settings["config"], vector.all_settings["conventions"]))
    )
    images, tokens = (np.array(vector.inputs[name]) for name in ("images", "tokens"))
    run = adapter_for(model).run(subtree(vector.inputs, "params"), images, tokens, dtype)
    got = {"loss": run.loss} | run.activations | {f"d/{name}": value for name, value in run.grads.items()}
    return {name: value for name, value in got.items() if name in vector.expected}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_hugging_face_answers_rightly(dtype: str) -> None:
    vector = packaged().find("model/huggingface")
    report = judge(vector, answer(vector, dtype), dtype, "Hugging Face", partial=True)
    assert report.passed, report
    assert sum(row.right for row in report.rows) > 100


def test_the_vector_tells_conventions_apart() -> None:
    """The same model does not answer open_clip's vector, whose GELU is another."""
    vector = packaged().find("model/open_clip")
    assert not judge(vector, answer(vector, "float32"), "float32", "Hugging Face", partial=True).passed
