"""Why a model is of no kind that check_model takes, and what to do with it: read off the model itself."""

from collections.abc import Callable, Iterator
from typing import Any

from siglip_ref.check.model.adapters import kinds_of
from siglip_ref.errors import UsageError

EXPECTED = "a SigLIP model of transformers or open_clip, one tower of theirs or of timm, or a siglip_ref Adapter"
WRITE_ONE = "write an Adapter: examples/ has one for torch and one for JAX"
_WRAPPED_IN = ("module", "_orig_mod", "base_model", "model")  # DataParallel and DDP, torch.compile, PEFT, trainers
_DEEP = 4


def refused(model: Any, is_known: Callable[[Any], bool]) -> UsageError:
    """The error for a model that nobody adapts; is_known: whether check_model would take what it is given."""
    kind = type(model)
    cause, repair = _why(model, is_known)
    return UsageError(EXPECTED, f"{kind.__module__}.{kind.__qualname__}", cause, repair)


def _why(model: Any, is_known: Callable[[Any], bool]) -> tuple[str, str]:
    if isinstance(model, type):
        return "the class, where a model of it is wanted", f"sr.check_model({model.__name__}(...))"
    if isinstance(model, str | dict):
        return f"a {type(model).__name__}, where the model itself is wanted", "load it first, then give the model"
    if any(package == "peft" for _, package in kinds_of(model)):
        return "adapters (LoRA) around a model", "model = model.merge_and_unload(), then check what it returns"
    inside = next((path for path, part in _inside(model) if is_known(part)), None)
    if inside:
        return "a wrapper around a model that check_model takes", f"give model.{inside}"
    return "", WRITE_ONE


def _inside(model: Any, path: str = "", deep: int = _DEEP) -> Iterator[tuple[str, Any]]:
    """What a model holds under a wrapper's names, at any depth; then all its modules."""
    for name in _WRAPPED_IN:
        part = vars(model).get(name) if hasattr(model, "__dict__") else None
        part = part if part is not None else getattr(model, name, None)
        if part is not None and part is not model and deep:
            yield f"{path}{name}", part
            yield from _inside(part, f"{path}{name}.", deep - 1)
    if not path and hasattr(model, "named_modules"):
        yield from ((name, part) for name, part in model.named_modules() if name)
