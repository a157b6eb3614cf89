"""LoRA adapters beside, or in, a file of weights: W + scale B A, where adapter_config.json says with which scale."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.checkpoint.formats.files import Store, read_json
from siglip_ref.checkpoint.stores import open_store
from siglip_ref.checkpoint.tables.mismatch import MERGE
from siglip_ref.checkpoint.tables.names import Tensor
from siglip_ref.errors import UsageError, few

SETTINGS = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BEFORE = "base_model.model."  # what peft puts before the names of the model it wraps
# module, which matrix, the adapter's name (none in a file of adapters alone)
PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.(?!weight$)(?P<name>[^.]+))?(?:\.weight)?"
)
# Ways to begin that change W itself: the file of the model it began from is then not the one that belongs to it.
MOVED = ("pissa", "olora", "corda", "loftq")


class Adapter(NamedTuple):
    """What is added to the weight of one module: names of its two matrices in the store."""

    a: str
    b: str
    embedding: bool


def is_adapter(name: str) -> bool:
    """Is this a name of an adapter's tensor, or of what it wraps?"""
    return any(mark in name for mark in (".lora_", ".base_layer.", ".modules_to_save.", ".original_module."))


def adapter_beside(folder: Path) -> tuple[Store, dict[str, Any] | None]:
    """The adapters in a folder, under the names of the modules that they change; and their settings."""
    settings = folder / SETTINGS
    store = open_store(next(folder / name for name in WEIGHTS if (folder / name).is_file()))
    found = read_json(settings) if settings.is_file() else None
    return store.renamed({name.removeprefix(BEFORE): name for name in store.tensors}), found


def together(base: Store, adapter: Store) -> Store:
    """One store of both; where both have a name, a bias or a module that was trained whole, the adapter's."""
    return Store(
        base.tensors | adapter.tensors,
        lambda name: (adapter if name in adapter.tensors else base).read(name),
    )


def merged(store: Store, settings: Mapping[str, Any] | None, file: Path, apart: bool) -> tuple[Store, list[str]]:
    """The plain weights, and a note; UsageError where it is not said, or not simple, how adapters are merged.

    Parameters
    ----------
    store : a model's tensors, adapters among them
    settings : the content of adapter_config.json, or None
    apart : the adapters lie in a file of their own, so that the weights are those that they began from
    """
    names = [name for name in store.tensors if is_adapter(name)]
    if not names:
        return store, []
    if settings is None:
        got = f"{few(names, 2)}, and no {SETTINGS} beside {file.name}"
        raise UsageError("weights, or adapters with the settings that say how to merge them", got, *MERGE)
    _require_simple(settings, apart)
    plain: dict[str, str] = {}
    for name in store.tensors:
        wrapped = PART.fullmatch(name) or ".original_module." in name
        if not wrapped and plain.setdefault(_plain(name), name) != name:
            raise UsageError("every weight once", name[:200], "a wrapped weight beside the plain one", MERGE[1])
    changed = {}
    for module, adapter in _adapters(names).items():
        weight = _weight_of(module, plain)
        changed[weight] = adapter, _scale(store, module, adapter, settings)
        _require_shapes(store, plain[weight], adapter)

    def read(name: str) -> Tensor:
        whole = store.read(plain[name])
        if name not in changed:
            return whole
        adapter, scale = changed[name]
        a, b = (store.read(part).astype(np.float64) for part in (adapter.a, adapter.b))
        change = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
        turned = adapter.embedding or bool(settings.get("fan_in_fan_out"))
        sum_: Tensor = whole + scale * (change.T if turned else change).reshape(whole.shape)
        return sum_ if whole.dtype == np.float64 else sum_.astype(np.float32)

    tensors = {name: store.tensors[old] for name, old in plain.items()}
    for name in changed:
        tensors[name] = replace(tensors[name], mapped=False)
    return Store(tensors, read), [f"LoRA: {len(changed)} weights are W + scale B A, as {SETTINGS} says"]


def _plain(name: str) -> str:
    """The name that a wrapped weight had before."""
    name = re.sub(r"\.modules_to_save\.(?!weight$|bias$)[^.]+\.", ".", name)
    return name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")


def _weight_of(module: str, plain: Mapping[str, str]) -> str:
    """The weight that adapters of a module change; a tower's own names may lack their beginning."""
    weight = f"{module}.weight"
    ends = [weight] if weight in plain else [name for name in plain if name.endswith(f".{weight}")]
    if len(ends) != 1:
        got = f"adapters of {module[:200]}, which is {'in it twice' if ends else 'not in it'}"
        raise UsageError("adapters of modules that the model has", got, "an adapter of another model", MERGE[1])
    return ends[0]


def _adapters(names: list[str]) -> dict[str, Adapter]:
    parts: dict[str, dict[str, tuple[str, bool]]] = {}
    called = set()
    for name in names:
        if match := PART.fullmatch(name):
            called.add(match["name"])
            parts.setdefault(match["module"], {})[match["side"]] = name, bool(match["kind"])
        elif ".lora_" in name:
            raise UsageError("adapters of two matrices, A and B", name[:200], "DoRA, or another kin of LoRA", MERGE[1])
    if len(called) > 1:
        got = few(sorted(map(str, called)))
        raise UsageError("one adapter", got, "several adapters in one file", "merge_and_unload() with the one you want")
    half = [module for module, found in parts.items() if len(found) < 2]
    if half:
        raise UsageError(
            "both matrices of every adapter", f"one, of {few(half)}", "part of the file is missing", MERGE[1]
        )
    return {module: Adapter(found["A"][0], found["B"][0], found["A"][1]) for module, found in parts.items()}


def _scale(store: Store, module: str, adapter: Adapter, settings: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r); both may differ from module to module, by a pattern that ends in its name."""

    def of_module(key: str, patterns: str, default: Any) -> float:
        for pattern, value in (settings.get(patterns) or {}).items():
            if _is_of(module, pattern):
                return float(value)
        return float(settings.get(key, default))

    rank, alpha = of_module("r", "rank_pattern", 8), of_module("lora_alpha", "alpha_pattern", 8)
    stored = (store.tensors[adapter.a].shape or (0,))[0]
    if stored != rank or rank < 1 or not math.isfinite(alpha):
        raise UsageError(
            expected=f"rank {rank:g} and a finite alpha, as {SETTINGS} says",
            got=f"rank {stored}, alpha {alpha:g} for {module[:200]}",
            cause="the settings of another adapter",
            repair="keep the two files together that were saved together; or merge_and_unload() before saving",
        )
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _is_of(module: str, pattern: str) -> bool:
    """Does a pattern mean this module? By its name or the end of it: expressions of a file's choosing are not run."""
    end = pattern.removeprefix("^").removesuffix("$")
    if not re.fullmatch(r"[\w.]+", end):
        raise UsageError(
            f"names of modules in the patterns of {SETTINGS}", pattern[:200], "a pattern of its own", MERGE[1]
        )
    return f".{module}".endswith(f".{end}") or f".{end}".endswith(f".{module}")


def _require_shapes(store: Store, weight: str, adapter: Adapter) -> None:
    whole, a, b = (store.tensors[name].shape for name in (weight, adapter.a, adapter.b))
    rank = a[0]
    fits = len(b) > 1 and b[1] == rank and math.prod(a) * math.prod(b) == math.prod(whole) * rank * rank
    if not fits:
        got = f"{a} and {b} for {weight[:200]} {whole}"
        raise UsageError("matrices A and B that fit the weight", got, "an adapter of another model", MERGE[1])


def _require_simple(settings: Mapping[str, Any], apart: bool) -> None:
    kind, begun = settings.get("peft_type", "LORA"), str(settings.get("init_lora_weights", "")).lower()
    odd = [key for key in ("use_dora", "lora_bias", "layer_replication", "use_qalora", "alora_invocation_tokens")]
    found = [key for key in odd if settings.get(key)]
    if kind != "LORA" or found or (apart and begun.startswith(MOVED)):
        got = kind if kind != "LORA" else ", ".join(found) or f"init_lora_weights {begun[:50]}"
        raise UsageError(f"plain LoRA in {SETTINGS}", str(got)[:200], "another way of adapting weights", MERGE[1])
