"""siglip-ref: the golden reference for SigLIP's forward and backward passes.

Names load on first use, so that `import siglip_ref` costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siglip_ref.architecture.conventions import preset as preset
    from siglip_ref.architecture.one_tower import OneTower as OneTower
    from siglip_ref.architecture.one_tower import one_tower as one_tower
    from siglip_ref.architecture.params import init as init
    from siglip_ref.architecture.sizes import Config as Config
    from siglip_ref.architecture.sizes import config as config
    from siglip_ref.check.files.checkpoint import check_checkpoint as check_checkpoint
    from siglip_ref.check.files.dump import check_dump as check_dump
    from siglip_ref.check.files.preprocess import check_preprocess as check_preprocess
    from siglip_ref.check.files.recipe import check_recipe as check_recipe
    from siglip_ref.check.files.tokenize import check_tokenize as check_tokenize
    from siglip_ref.check.loss.check import check_loss as check_loss
    from siglip_ref.check.loss.parametrize import parametrize_with_checks as parametrize_with_checks
    from siglip_ref.check.model.adapters import Adapter as Adapter
    from siglip_ref.check.model.check import check_model as check_model
    from siglip_ref.check.model.tower import probe_objective as probe_objective
    from siglip_ref.check.ranks.check import check_distributed_loss as check_distributed_loss
    from siglip_ref.check.ranks.check import check_ranks as check_ranks
    from siglip_ref.check.step.check import check_step as check_step
    from siglip_ref.errors import UsageError as UsageError
    from siglip_ref.model.loss import LossAndGrads as LossAndGrads
    from siglip_ref.model.loss import expected_loss as expected_loss
    from siglip_ref.model.loss import sigmoid_loss as sigmoid_loss
    from siglip_ref.model.optim import AdamW as AdamW
    from siglip_ref.model.optim import BigVision as BigVision
    from siglip_ref.model.two_towers import Output as Output
    from siglip_ref.model.two_towers import forward as forward
    from siglip_ref.model.two_towers import loss_and_grads as loss_and_grads
    from siglip_ref.use.load import load as load
    from siglip_ref.use.zeroshot import Model as Model

__version__ = "0.1.0"
_IMPORTED_IN = os.getpid()  # another process than this one was forked from it: its threads are not there any more

# public name: the module it lives in
_HOMES = {
    "AdamW": "siglip_ref.model.optim",
    "Adapter": "siglip_ref.check.model.adapters",
    "BigVision": "siglip_ref.model.optim",
    "Config": "siglip_ref.architecture.sizes",
    "LossAndGrads": "siglip_ref.model.loss",
    "Model": "siglip_ref.use.zeroshot",
    "OneTower": "siglip_ref.architecture.one_tower",
    "Output": "siglip_ref.model.two_towers",
    "UsageError": "siglip_ref.errors",
    "check_checkpoint": "siglip_ref.check.files.checkpoint",
    "check_distributed_loss": "siglip_ref.check.ranks.check",
    "check_loss": "siglip_ref.check.loss.check",
    "check_model": "siglip_ref.check.model.check",
    "check_ranks": "siglip_ref.check.ranks.check",
    "check_preprocess": "siglip_ref.check.files.preprocess",
    "check_recipe": "siglip_ref.check.files.recipe",
    "check_step": "siglip_ref.check.step.check",
    "check_tokenize": "siglip_ref.check.files.tokenize",
    "check_dump": "siglip_ref.check.files.dump",
    "config": "siglip_ref.architecture.sizes",
    "preset": "siglip_ref.architecture.conventions",
    "expected_loss": "siglip_ref.model.loss",
    "forward": "siglip_ref.model.two_towers",
    "init": "siglip_ref.architecture.params",
    "load": "siglip_ref.use.load",
    "loss_and_grads": "siglip_ref.model.two_towers",
    "parametrize_with_checks": "siglip_ref.check.loss.parametrize",
    "one_tower": "siglip_ref.architecture.one_tower",
    "probe_objective": "siglip_ref.check.model.tower",
    "sigmoid_loss": "siglip_ref.model.loss",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'siglip_ref' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
