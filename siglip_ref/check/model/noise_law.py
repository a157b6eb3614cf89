"""The noise of models too large to be measured: a power law in their sizes, fitted on small ones.

    noise / unit roundoff = coefficient(tensor) * width^a * depth^b * tokens^c * batch^d

The exponents are one set for values, one for gradients and one for those of the pooling probe's queries and keys (sums
over all patches that nearly cancel), per format; the coefficient of a tensor (all blocks of a tower count as one) is
such that nine tenths of what was measured lie below the law, at single numbers and at the probe all of it.
noise_law.json holds all of them, and the sizes they come from; `benchmarks/noise_law.py` makes it;
tests/interop/test_model_noise.py holds it against wide models, and B/16 itself (nightly).
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.noise.measure import FLOAT64

FILE = Path(__file__).with_name("noise_law.json")
SIZES = ("width", "depth", "tokens", "batch")
FAMILIES = ("values", "gradients", "gradients at the probe")
LIKE = {"text/widen/kernel": "image/patch/kernel"}  # not measured: one tower's first product is like the other's
_PROBE = re.compile(r"image/pool/(probe|attn/[qk]/\w+)")
_VALUE = re.compile(r"(image|text)/(stem|block\d+/\+\w+|norm|pool|head|embed)|logits|loss")


def law(cfg: Config, batch: int, dtype: Dtype, names: Iterable[str]) -> dict[str, float]:
    """Noise by name of value or gradient, relative to the tensor's maximum (a key bias: to the sum of its terms).

    Examples
    --------
    >>> import siglip_ref as sr
    >>> small, large = (law(sr.config(name), 4, "float32", ["logits"])["logits"] for name in ("mu/16", "B/16-256"))
    >>> small < large < 20 * small
    True
    """
    measured = "float32" if dtype == "float64" else dtype
    unit = FORMATS[measured].unit * (FLOAT64 if dtype == "float64" else 1.0)
    of_format = fitted()[measured]
    noise = {}
    for name in names:
        part = of_format[family(name)]
        growth = np.prod(np.power(sizes_of(name, cfg, batch), part["exponents"]))
        noise[name] = float(unit * part["coefficients"][role(name)] * growth)
    return noise


def family(name: str) -> str:
    """Which of FAMILIES it is of."""
    if _VALUE.fullmatch(name):
        return FAMILIES[0]
    return FAMILIES[2] if _PROBE.fullmatch(name) else FAMILIES[1]


def role(name: str) -> str:
    """What a tensor is, whatever its block: the law knows all blocks of a tower as one.

    >>> role("text/block03/mlp/in/kernel")
    'text/block/mlp/in/kernel'
    """
    return LIKE.get(name) or re.sub(r"block\d+", "block", name)


def sizes_of(name: str, cfg: Config, batch: int) -> tuple[float, ...]:
    """What the noise of a tensor may grow with, in the order of SIZES.

    A value knows its own tower, and the blocks before it; a gradient, the loss and the logits know the whole model.
    """
    towers = {"image": (cfg.image, cfg.patches), "text": (cfg.text, cfg.text_length)}
    own = family(name) == "values" and name.split("/")[0] in towers
    known = [towers[name.split("/")[0]]] if own else list(towers.values())
    depth = max(tower.depth for tower, _ in known)
    if own and (block := re.search(r"block(\d+)", name)):
        depth = int(block[1]) + 1
    width = max(tower.width for tower, _ in known)
    if name.endswith("/stem"):  # of one product, with as many terms as a patch has numbers; a token is looked up
        depth, width = 1, 3 * cfg.patch**2 if name.startswith("image") else width
    return width, max(depth, 1), max(tokens for _, tokens in known), batch


@lru_cache(maxsize=1)
def fitted() -> Any:
    """By format and family: exponents in the order of SIZES, coefficients by role."""
    return json.loads(FILE.read_text(encoding="utf-8"))["law"]
