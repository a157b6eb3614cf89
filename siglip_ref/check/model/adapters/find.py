"""From a model or a short name to an Adapter; no framework is imported before it is needed."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from inspect import isclass, isroutine, signature
from pathlib import Path
from typing import Any

from siglip_ref.architecture.one_tower import UpTo
from siglip_ref.architecture.sizes import SIZES, config
from siglip_ref.check.call.target import load_callable
from siglip_ref.check.model.adapters import Adapter, kinds_of
from siglip_ref.check.model.adapters.refused import refused
from siglip_ref.errors import UsageError, near

# without what it depends on: that brings a torchvision which does not fit the torch that is there
_OPEN_CLIP = "--no-deps open_clip_torch timm"

_TOWERS = "siglip_ref.check.model.adapters.towers"

# class, package it comes from: the adapter's module and function
KNOWN = {
    ("SiglipModel", "transformers"): ("siglip_ref.check.model.adapters.huggingface", "from_huggingface"),
    ("Siglip2Model", "transformers"): ("siglip_ref.check.model.adapters.huggingface", "from_huggingface"),
    ("CustomTextCLIP", "open_clip"): ("siglip_ref.check.model.adapters.open_clip", "from_open_clip"),
    **{
        (f"{family}{kind}", "transformers"): (_TOWERS, "from_huggingface_tower")
        for family in ("Siglip", "Siglip2")
        for kind in ("VisionModel", "VisionTransformer", "TextModel", "TextTransformer", "ForImageClassification")
    },
    ("VisionTransformer", "timm"): (_TOWERS, "from_timm_tower"),
    ("TimmModel", "open_clip"): (_TOWERS, "from_timm_tower"),
    ("TextTransformer", "open_clip"): (_TOWERS, "from_open_clip_text_tower"),
}


def adapter_for(model: object, up_to: UpTo | None = None) -> Adapter:
    """The Adapter of a model of a known kind; an Adapter is returned as it is. up_to : where a tower alone ends."""
    maker = _maker(model)
    if maker:
        module, function = maker
        made: Adapter
        if function.endswith("tower"):
            made = getattr(import_module(module), function)(model, up_to)
            return made
        _require_none(up_to, "a whole model", "give the tower: model.vision_model, model.text_model, model.visual")
        made = getattr(import_module(module), function)(model)
        return made
    if isinstance(model, Adapter) and not isinstance(model, type):
        _require_none(up_to, "an Adapter", "its config says it: sr.one_tower(cfg, side, up_to)")
        return model
    raise refused(model, lambda part: bool(_maker(part)) or isinstance(part, Adapter))


def _require_none(up_to: str | None, what: str, repair: str) -> None:
    if up_to is not None:
        raise UsageError("up_to for a tower alone", f"up_to={up_to!r} and {what}", "", repair)


def _maker(model: object) -> tuple[str, str] | None:
    """Module and function that make the Adapter of a model of a known kind."""
    return next((KNOWN[kind] for kind in kinds_of(model) if kind in KNOWN), None)


def load_target(target: str) -> object:
    """The model that a command line names.

    Parameters
    ----------
    target : a short name, for a model with random weights: "hf:tiny", "hf:tiny-naflex", "hf:B/16-256" or any other
        size of `siglip_ref.architecture.sizes`, "open_clip:ViT-B-16-SigLIP"; a directory that transformers or open_clip
        saved, for that model or tower with its weights; or "module:name", "file.py:name", where name is a model, an
        Adapter, or a function without arguments that returns one
    """
    if Path(target).is_dir():
        return _saved(Path(target))
    family, _, name = target.partition(":")
    makers: dict[str, Callable[[str], object]] = {"hf": _huggingface, "open_clip": _open_clip}
    if family in makers and name:
        return makers[family](name)
    found: Any = load_callable(target)
    if not (isroutine(found) or isclass(found)):
        return found
    try:
        signature(found).bind()
    except TypeError as cause:
        raise UsageError(
            expected="a model, or a function without arguments that returns one",
            got=f"{target}{signature(found)}",
            cause=f"it cannot be called without arguments ({cause})",
            repair="write a function that makes the model: def make_model(): return ...",
        ) from None
    return found()


def _huggingface(name: str) -> object:
    sizes = SIZES | {"tiny-naflex": replace(config("tiny"), naflex=True)}
    if name not in sizes:
        raise UsageError(
            expected=f"hf: and one of {', '.join(sizes)}",
            got=repr(f"hf:{name}"),
            cause="",
            repair="siglip-ref check model hf:tiny",
            near=[f"hf:{one}" for one in near(name, sizes)],
        )
    cfg = sizes[name]
    if not cfg.text_head:
        raise UsageError(
            expected=f"a size that transformers has: {', '.join(size for size, c in sizes.items() if c.text_head)}",
            got=repr(name),
            cause="a model without text head stands in SiglipModel with an identity",
            repair="choose one of the sizes above",
        )
    family = f"siglip{2 * cfg.naflex or ''}"
    transformers = _needed("transformers", "torch transformers", f"transformers.models.{family}.modeling_{family}")
    if cfg.image_size[0] != cfg.image_size[1]:
        cfg = replace(cfg, image_size=(5 * cfg.patch, 5 * cfg.patch))  # it has square images only
    from siglip_ref.check.model.adapters.huggingface import make_config

    return getattr(transformers, f"{family.capitalize()}Model")._from_config(make_config(cfg))


def _saved(directory: Path) -> object:
    """The framework's own model with the weights of a directory: `weights="own"` then proves parity on them."""
    try:
        if (directory / "config.json").is_file():
            auto = _needed("transformers", "torch transformers", "transformers.models.auto.modeling_auto")
            model, told = auto.AutoModel.from_pretrained(directory, local_files_only=True, output_loading_info=True)
            if lacking := sorted(told["missing_keys"]):  # transformers would go on with random numbers
                raise KeyError(f"no {', '.join(lacking[:3])} in the weights")
            return model
        if (directory / "open_clip_config.json").is_file():
            return _needed("open_clip", _OPEN_CLIP, "open_clip").create_model(f"local-dir:{directory}")
    except UsageError:
        raise
    except Exception as error:  # whatever the libraries raise at a broken file
        raise UsageError(
            expected="a SigLIP model that its own library can load",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            cause="a file of another model, cut short, or of another version of the library",
            repair=f"siglip-ref check checkpoint {directory}, which says of each tensor what is wrong",
        ) from error
    raise UsageError(
        expected="a directory with config.json (transformers) or open_clip_config.json",
        got=f"{directory} with {', '.join(sorted(entry.name for entry in directory.iterdir())[:5]) or 'nothing'}",
        cause="not the directory of a model, or the settings were not copied along with the weights",
        repair="hf download google/siglip-base-patch16-256 --local-dir DIR, then siglip-ref check model DIR",
    )


def _open_clip(name: str) -> object:
    open_clip = _needed("open_clip", _OPEN_CLIP, "open_clip")
    if name not in open_clip.list_models() or "SigLIP" not in name:
        known = [model for model in open_clip.list_models() if "SigLIP" in model]
        raise UsageError(
            expected=f"one of {', '.join(known)}",
            got=repr(name),
            cause="open_clip has no SigLIP model of this name",
            repair="open_clip:ViT-B-16-SigLIP",
            near=near(name, known),
        )
    return open_clip.create_model(name)


def _why(package: str, error: Exception) -> str:
    """Whether it is missing itself, or lacks something, or does not fit what is there."""
    lacking = error.name if isinstance(error, ModuleNotFoundError) else None
    if lacking is None:
        return f"{package} is installed, but does not import here"
    if lacking == package or lacking.startswith(f"{package}."):
        return f"{package} is not installed here"
    return f"{package} is installed here, but not {lacking}, which it needs"


def _needed(package: str, install: str, module: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            expected=f"{package}, installed and working",
            got=f"{type(error).__name__}: {error}",
            cause=_why(package, error),
            repair=f"pip install {install}",
        ) from error
