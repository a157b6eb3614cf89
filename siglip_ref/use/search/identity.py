"""Which model made an index: by name, and by a digest of all that its images' vectors depend on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_ref.checkpoint.find_files import find_weights, resolve, shards_of
from siglip_ref.errors import UsageError
from siglip_ref.use.load import load
from siglip_ref.use.search.photos import digest_of
from siglip_ref.use.zeroshot import Model

Identity = dict[str, Any]


def loaded(
    name: str,
    *,
    prefix: str | None = None,
    preprocess: str | None = None,
    tokenizer: str | None = None,
    known: Mapping[str, Any] | None = None,
) -> tuple[Model, Identity]:
    """A model, and who it is.

    name : a directory, a file of weights, or a hub name
    known : an earlier identity; files of weights of the same size and time are not read again
    """
    model = load(name, tokenizer=tokenizer, preprocess=preprocess, prefix=prefix)
    place = resolve(name)
    earlier = {file["name"]: file for file in (known or {}).get("files", [])}
    files = [_file(path, earlier.get(path.name)) for path in shards_of(*find_weights(place))]
    total = hashlib.sha256(f"{model.config}\n{model.preprocess}\n{prefix}\n".encode())
    for file in files:
        total.update(file["sha256"].encode())
    told = str(place.absolute()) if Path(name).expanduser().exists() else name
    return model, {
        "name": told,
        "prefix": prefix,
        "preprocess": preprocess,
        "size": model.config.name,
        "digest": total.hexdigest(),
        "files": files,
    }


def _file(path: Path, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    status = path.stat()
    about = {"name": path.name, "bytes": status.st_size, "modified": status.st_mtime_ns}
    if earlier and all(earlier.get(key) == value for key, value in about.items()):
        return dict(earlier)
    return about | {"sha256": digest_of(path)}


def require_same(now: Mapping[str, Any], then: Mapping[str, Any], index: Path) -> None:
    """Refuse another model than the index's: vectors of two models have nothing in common."""
    if now["digest"] != then["digest"]:
        other = now["name"] != then["name"]
        raise UsageError(
            expected=f"the model that {index} was made with: {then['name']} ({then['size']})",
            got=f"{now['name']} ({now['size']})" if other else "other weights or settings at this place",
            cause="another model was named" if other else "the model has changed since",
            repair=f"put it back; or make the index anew: siglip-ref index PHOTOS --model DIR --out {index} --force",
        )
