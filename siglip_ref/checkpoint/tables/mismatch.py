"""Why the tensors of a model are not those of a SigLIP: read off the names and shapes that were found."""

import math
from collections.abc import Mapping, Sequence

from siglip_ref.errors import UsageError, few

Shape = tuple[int, ...]
ADAPTERS = ("lora_", ".base_layer.", "modules_to_save.", "original_module.", "vera_", "hada_", "oft_", "ia3_")
QUANTISED = (
    *(".SCB", "absmax", "quant_map", "quant_state", "nested_absmax", "weight_scale", "input_scale", "scale_inv"),
    *("qweight", "qzeros", "g_idx", "_packed", "weight_format"),
)
MERGE = (
    "adapters (LoRA) that are not merged into the weights",
    ("model = model.merge_and_unload(), then save it; or keep adapter_config.json beside the weights"),
)
NARROW = "quantised weights, or what belongs to them", "use the float weights, from before they were quantised"
# Names of the pooling head in the three formats.
POOLING = ("vision_model.head.", "visual.trunk.attn_pool.", "img/MAPHead_0/")


def mismatch(
    expected: str, missing: Sequence[str], left: Sequence[str], wrong: Mapping[str, tuple[Shape, Shape]]
) -> UsageError:
    """The error for a table of names that does not fit.

    Parameters
    ----------
    missing, left : names that the table has and the model has not, and the other way round
    wrong : name -> shape found, shape expected
    """
    if missing or left:
        got = f"missing: {few(missing)}; left over: {few(left)}"
        cause, repair = _of_names(missing, left)
    else:
        got = few([f"{name} {found}, not {wanted}" for name, (found, wanted) in wrong.items()])
        cause, repair = _of_shapes(wrong)
    return UsageError(expected, got, cause, repair)


def _of_names(missing: Sequence[str], left: Sequence[str]) -> tuple[str, str]:
    if any(mark in name for name in left for mark in ADAPTERS):
        return MERGE
    if any(mark in name for name in left for mark in QUANTISED):
        return NARROW
    if any("visual_projection" in name or name.endswith("visual.proj") for name in left):
        return "a CLIP model: it has projections that no SigLIP has", "take a SigLIP model"
    inserted = _inserted(missing, left)
    if inserted:
        where = f"a wrapper that puts {inserted[0][:100]!r} into {len(inserted)} names"
        return where, "give the model inside it, or rename its tensors"
    if missing and not left:
        if all(name.startswith(POOLING) for name in missing):
            return (
                "a tower without its attention pooling, as many models of vision and language keep it",
                "take the pooling head from the SigLIP that it was made from: without it there is no embedding",
            )
        if set(missing) <= {"logit_bias", "logit_scale", "t", "b"}:
            return (
                "a model saved without the scale or the bias of its logits, which a loss module may have kept",
                "save them with it, as logit_scale and logit_bias",
            )
        many = (
            "1 tensor was not saved, or lies" if len(missing) == 1 else f"{len(missing)} tensors were not saved, or lie"
        )
        return f"{many} in another file", "save the whole model, or give the index of the shards"
    if left and not missing:
        return "the model has more than a SigLIP has: layers or heads of its own", "give the SigLIP in it alone"
    return "a model of another kind, or of another depth than it says", "docs, page on models and checkpoints"


def _inserted(missing: Sequence[str], left: Sequence[str]) -> list[str]:
    """What stands in names that are too many, and without which they would be some that are missing."""
    wanted, found = set(missing), []
    for name in left[:10_000]:
        parts = name.split(".")
        for place in range(len(parts) - 1):
            without = ".".join([*parts[:place], *parts[place + 1 :]])
            deeper = ".".join(parts[place + 1 :])
            if without in wanted or deeper in wanted:
                found.append(".".join(parts[: place + 1] if deeper in wanted else parts[place : place + 1]) + ".")
                break
    return found


def _of_shapes(wrong: Mapping[str, tuple[Shape, Shape]]) -> tuple[str, str]:
    turned = [name for name, (found, wanted) in wrong.items() if len(found) > 1 and sorted(found) == sorted(wanted)]
    if len(turned) == len(wrong):
        return (
            "axes in another order; which of two equally long axes is which, no shape tells, so nothing is turned",
            "transpose them, those of square matrices too, as the library does that wrote the file",
        )
    count = sum(math.prod(found) != math.prod(wanted) for found, wanted in wrong.values())
    if count:
        return f"{count} of them have another number of elements: not the size that the model says it has", (
            "the configuration that belongs to these weights"
        )
    return "the same numbers in another form: flattened, or split", "save them in the shape that is expected"
