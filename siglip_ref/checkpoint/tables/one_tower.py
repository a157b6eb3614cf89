"""One tower of transformers, alone or inside a larger model: its configuration, from settings or from shapes."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from siglip_ref.architecture.sizes import Config
from siglip_ref.checkpoint.tables.huggingface import DEFAULTS, TOWERS, WIDEN, conventions_of, image_fields, text_fields
from siglip_ref.checkpoint.tables.names import Shape, made, plausible
from siglip_ref.checkpoint.tables.open_clip import heads_of
from siglip_ref.errors import UsageError


def read_tower(found: Mapping[str, Shape], settings: Mapping[str, Any] | None, side: str) -> tuple[Config, bool]:
    """The configuration of one tower, and whether its file of settings tells it; else its shapes must.

    Parameters
    ----------
    found : the tower's shapes, under the names that a whole model has
    settings : a config.json: the tower's, that of a whole SigLIP, or of a larger model with it inside; or None
    side : "image" or "text"
    """
    inside = _section(settings or {}, side)
    part, model = f"{'vision' if side == 'image' else 'text'}_config", TOWERS[side]
    try:
        own = inside if inside is not None else _from_shapes(found, model)
        fields = DEFAULTS[part] | own
        naflex = len(found.get(f"{model}.embeddings.patch_embedding.weight", ())) == 2
        image = image_fields(fields, naflex) if side == "image" else {}
        text = text_fields(fields) if side == "text" else {}
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            expected=f"a SigLIP's {side} tower, as transformers names it",
            got=f"{error} among {', '.join(sorted(found)[:4])} ...",
            cause="another model's tower, or a part of it",
            repair="save the tower whole, with its config.json",
        ) from error
    return plausible(made(image, text, conventions_of(fields, fields))), inside is not None


def _section(settings: Mapping[str, Any], side: str) -> dict[str, Any] | None:
    """The settings of a SigLIP's tower, wherever in a larger model's they stand: it says so in its model_type."""
    key, kinds = ("vision_config", "vision") if side == "image" else ("text_config", "text")
    waiting: deque[tuple[str, Mapping[str, Any], str]] = deque([("", settings, "")])
    while waiting:
        name, content, above = waiting.popleft()
        kind = str(content.get("model_type", above if name == key else ""))
        if kind in (f"siglip_{kinds}_model", f"siglip2_{kinds}_model") or (
            name == key and kind in ("siglip", "siglip2")
        ):
            return dict(content)
        waiting += [(k, part, kind) for k, part in content.items() if isinstance(part, dict)]
    return None


def _from_shapes(found: Mapping[str, Shape], model: str) -> dict[str, Any]:
    """What shapes tell; as many heads as the released tower of this width has, else heads of 64."""
    position = found[f"{model}.embeddings.position_embedding.weight"]
    layers = {name.split(".")[3] for name in found if name.startswith(f"{model}.encoder.layers.")}
    told: dict[str, Any] = {
        "hidden_size": position[1],
        "intermediate_size": found[f"{model}.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads_of(position[1]),
    }
    if model == TOWERS["text"]:
        vocabulary, columns = found[f"{model}.embeddings.token_embedding.weight"]
        told["embedding_size"] = columns if WIDEN in found else None
        head = found.get(f"{model}.head.weight", position[1:])
        return told | {"max_position_embeddings": position[0], "vocab_size": vocabulary, "projection_size": head[0]}
    kernel = found[f"{model}.embeddings.patch_embedding.weight"]
    patch = math.isqrt(kernel[1] // 3) if len(kernel) == 2 else kernel[2]
    return told | {
        "patch_size": patch,
        "image_size": math.isqrt(position[0]) * patch,
        "num_patches": position[0],
    }
