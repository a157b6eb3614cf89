"""From a path or a hub name to files: the weights, the adapters that change them, all shards."""

from pathlib import Path
from typing import Any

from siglip_ref.checkpoint.formats.files import Store, first_line, last_resort, read_json, unreadable
from siglip_ref.checkpoint.tables import lora
from siglip_ref.checkpoint.tables.mismatch import MERGE
from siglip_ref.errors import UsageError

WEIGHTS = (  # what a directory may hold, the first found is taken
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


def resolve(path: str | Path) -> Path:
    """A path that exists, or the folder into which huggingface_hub has put a model's files."""
    if not str(path):
        raise UsageError("a directory, a file of weights, or a hub name", "''", "no name was given", "give the path")
    place = Path(path).expanduser()
    with last_resort(place, "weights"):
        if place.exists():
            return place
    name = str(path)
    hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    command = f"hf download {name} --local-dir {name.split('/')[-1]}"
    missing = UsageError(
        expected="a directory, a file of weights, or a hub name",
        got=name,
        cause="huggingface_hub is not installed" if hub else "there is nothing at this path",
        repair=f"pip install huggingface_hub, then: {command}" if hub else "check the path",
    )
    if not hub:
        raise missing
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing from None
    wanted = ["*.json", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub's client has many kinds of its own
        raise UsageError(
            expected=f"the model {name} from the hub",
            got=first_line(error).removeprefix("Got: "),
            cause="no such model, no network, or no permission to read it",
            repair=command,
        ) from error


def find_weights(place: Path) -> tuple[Path, Path | None]:
    """The file of weights, and a folder of LoRA adapters that change them, if there is one."""
    folder = place if place.is_dir() else place.parent
    adapters = folder if any((folder / name).is_file() for name in lora.WEIGHTS) else None
    if not place.is_dir() and place.name not in lora.WEIGHTS:
        return place, None
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name, adapters
    others = [*folder.glob("*.safetensors"), *folder.glob("*.npz")]
    others = sorted(file for file in others if file.name not in lora.WEIGHTS)
    if len(others) == 1:
        return others[0], adapters
    if adapters and not others:
        return _base(folder), adapters
    raise unreadable(
        place,
        "one of " + ", ".join([*WEIGHTS, "one .npz"]),
        f"{len(others)} files of weights" if others else "none",
        "an incomplete download" if not others else "several models in one directory",
        "give the path of the file itself" if others else "hf download OWNER/MODEL --local-dir DIR",
    )


def _base(folder: Path) -> Path:
    """The weights that the adapters of a folder change, which its settings name."""
    settings = folder / lora.SETTINGS
    named = read_json(settings).get("base_model_name_or_path") if settings.is_file() else None
    if not isinstance(named, str) or not named:
        got = "adapters (LoRA) alone, and no name of the model that they change"
        raise unreadable(folder, "weights", got, "only the adapters were saved", MERGE[1])
    beside = folder / named
    base = beside if beside.is_dir() and not Path(named).is_absolute() else resolve(named)
    if base.resolve() == folder.resolve():
        raise unreadable(settings, "the model that the adapters change", named, "it names itself", MERGE[1])
    return find_weights(base)[0]


def adapted(store: Store, file: Path, adapters: Path | None) -> tuple[Store, dict[str, Any] | None, list[str]]:
    """The store with the adapters' tensors beside the weights; the adapters' settings; notes."""
    if adapters is None:
        settings = file.with_name(lora.SETTINGS)
        return store, read_json(settings) if settings.is_file() else None, []
    added, how = lora.adapter_beside(adapters)
    note = f"weights of {file.parent}, adapters of {adapters}" if file.parent != adapters else ""
    return lora.together(store, added), how, [note] * bool(note)


def shards_of(file: Path, adapters: Path | None) -> list[Path]:
    """Every file that tensors come from."""
    more = [adapters / name for name in lora.WEIGHTS if (adapters / name).is_file()] if adapters else []
    if not file.name.endswith(".index.json"):
        return [file, *more]
    return [*(file.with_name(name) for name in sorted(set(read_json(file)["weight_map"].values()))), *more]
