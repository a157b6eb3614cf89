"""Every reader, given spoilt files by the thousand: what it raises, what it believes, what it allocates.

python mutated.py COUNT SEED [KIND ...] prints a summary as JSON. Memory is limited to twice the readers' caps, which
are lowered here, so that an allocation above them fails, and shows.
"""

import io
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mutations
import numpy as np
from PIL import Image

import siglip_ref as sr
from siglip_ref.architecture.sizes import Tower
from siglip_ref.check.files.dump import check_dump
from siglip_ref.checkpoint.formats import files
from siglip_ref.checkpoint.load import Checkpoint, load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.checkpoint.stores import open_store
from siglip_ref.errors import UsageError
from siglip_ref.training.saved import store
from siglip_ref.use import pictures
from siglip_ref.use.load import load
from siglip_ref.use.tokenizer import json_tokenizer, sentencepiece_tokenizer
from siglip_ref.vectors import files as vector_files
from siglip_ref.vectors.files import write_safetensors
from siglip_ref.vectors.store import packaged, read

CAP = 32 * 2**20  # for every reader here
SLOW = 5.0  # seconds of one file
TINY = replace(
    sr.config("tiny"),
    image=Tower(4, 1, 5, 2),
    text=Tower(4, 1, 6, 2),
    image_size=(8, 8),
    vocabulary=29,
    text_length=4,
    conventions=sr.preset("huggingface"),
)
PARAMS = sr.init(TINY, seed=1, dtype=np.float32)


@dataclass(frozen=True)
class Kind:
    """One sort of file: those that lie beside it, which one is spoilt and how, who reads it, and what may come of it.

    judge : a complaint about what was read, or ""; allowed : errors beside UsageError
    """

    files: dict[str, bytes]
    spoilt: str
    ways: tuple[mutations.Spoil, ...]
    read: Callable[[Path], Any]
    judge: Callable[[Any], str] = lambda found: ""
    allowed: tuple[type[Exception], ...] = ()


def content_of(place: Path) -> dict[str, bytes]:
    """Name -> bytes of every file of a folder."""
    return {file.name: file.read_bytes() for file in place.iterdir()}


def same_shapes(found: Checkpoint) -> str:
    """Foreign weights may hold other numbers; names, shapes and types must be the model's, and NaN counted."""
    names = {name: (value.shape, value.dtype) for name, value in found.params.items()}
    if names != {name: (value.shape, value.dtype) for name, value in PARAMS.items()}:
        return f"other names, shapes or types: {found.config}"
    kinds = {name: tensor.kind for name, tensor in open_store(found.path).tensors.items() if "position_ids" not in name}
    if set(kinds.values()) - {"float32"} and not any("in one file" in note for note in found.notes):
        return f"other types in the file: {set(kinds.values())}"
    lost = sum(not np.isfinite(value).all() for value in found.params.values())
    return "" if not lost or any("hold" in note for note in found.notes) else f"{lost} tensors not finite, and no note"


def prepared(place: Path) -> Any:
    """A model whose settings beside the weights are followed to the end."""
    model = load(place)
    table = sr.preprocess.levels(model.preprocess) if hasattr(sr, "preprocess") else None
    return model, table


def weights() -> dict[str, Kind]:
    """Checkpoints of all formats."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        hugging = content_of(save_checkpoint(place / "a", PARAMS, TINY))
        sharded = content_of(save_checkpoint(place / "b", PARAMS, TINY, shard=1500))
        clip = content_of(save_checkpoint(place / "c", PARAMS, TINY, "open_clip"))
        flax = save_checkpoint(place / "d", PARAMS, TINY, "big_vision")
        with np.load(flax) as opened:
            np.savez_compressed(place / "e.npz", **{member: opened[member] for member in opened.files})
        packed = {"m.npz": (place / "e.npz").read_bytes()}
        arrays = {"m.npz": flax.read_bytes()}
    told = {
        "processor_config.json": {"image_processor": {"image_mean": [0.4] * 3, "image_std": [0.3] * 3, "resample": 2}},
        "preprocessor_config.json": {
            "image_mean": [0.4] * 3,
            "image_std": [0.3] * 3,
            "rescale_factor": 1 / 255,
            "resample": 3,
        },
        "tokenizer_config.json": {"tokenizer_class": "SiglipTokenizer", "model_max_length": 4, "padding_side": "right"},
    }
    extra = {name: json.dumps(content).encode() for name, content in told.items()}
    model_cfg = {
        "vision_cfg": {"image_size": 8},
        "text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}, "heads": 2},
    }
    clip["open_clip_config.json"] = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3}}).encode()
    raw, inside = mutations.bytes_, (mutations.bytes_, mutations.json_, mutations.json_)
    kinds = {
        "safetensors": Kind(
            hugging, "model.safetensors", (raw, mutations.beginning, mutations.safetensors), load_checkpoint
        ),
        "config": Kind(hugging, "config.json", inside, load_checkpoint),
        "index": Kind(sharded, "model.safetensors.index.json", inside, load_checkpoint),
        "shard": Kind(
            sharded, min(n for n in sharded if n.startswith("model-0")), (raw, mutations.safetensors), load_checkpoint
        ),
        "open_clip": Kind(clip, "open_clip_model.safetensors", (raw, mutations.safetensors), load_checkpoint),
        "npz": Kind(arrays, "m.npz", (raw, mutations.ending, mutations.archive, mutations.archive), load_checkpoint),
        "packed npz": Kind(packed, "m.npz", (raw, mutations.ending, mutations.archive), load_checkpoint),
    }
    kinds = {name: replace(kind, judge=same_shapes) for name, kind in kinds.items()}
    kinds["open_clip settings"] = Kind(clip, "open_clip_config.json", inside, load)
    kinds |= {name: Kind(hugging | extra, name, inside, load) for name in extra}
    return kinds | of_torch(hugging) | adapters(hugging)


def of_torch(hugging: dict[str, bytes]) -> dict[str, Kind]:
    """.pt and .bin, new and old."""
    try:
        import torch
    except ImportError:
        return {}
    from safetensors.numpy import load as tensors_of

    content = {name: torch.from_numpy(value.copy()) for name, value in tensors_of(hugging["model.safetensors"]).items()}
    kinds = {}
    for name, new in (("pt", True), ("old pt", False)):
        file = io.BytesIO()
        torch.save({"state_dict": content, "epoch": 3}, file, _use_new_zipfile_serialization=new)
        ways = (
            (mutations.bytes_, mutations.ending, mutations.archive, mutations.archive)
            if new
            else (mutations.bytes_, mutations.beginning)
        )
        all_ = {"config.json": hugging["config.json"], "pytorch_model.bin": file.getvalue()}
        kinds[name] = Kind(all_, "pytorch_model.bin", ways, load_checkpoint, same_shapes)
    return kinds


def adapters(hugging: dict[str, bytes]) -> dict[str, Kind]:
    """LoRA beside the weights."""
    from safetensors.numpy import save

    module, rng = "vision_model.encoder.layers.0.self_attn.q_proj", np.random.default_rng(1)
    a, b = rng.standard_normal((2, 4)).astype(np.float32), rng.standard_normal((4, 2)).astype(np.float32)
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"k_proj": 3}, "alpha_pattern": {}}
    all_ = hugging | {
        "adapter_model.safetensors": save(
            {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        ),
        "adapter_config.json": json.dumps(told).encode(),
    }
    inside = (mutations.bytes_, mutations.json_, mutations.json_)
    weights = (mutations.bytes_, mutations.safetensors)
    return {
        "adapter": Kind(all_, "adapter_model.safetensors", weights, load_checkpoint, same_shapes),
        "adapter settings": Kind(all_, "adapter_config.json", inside, load_checkpoint, same_shapes),
    }


def golden() -> dict[str, Kind]:
    """Vectors, answers to them, and checkpoints of a training: no other number may be taken for good."""
    from siglip_ref.vectors.content import drafts
    from siglip_ref.vectors.generate import build

    small = dict(build([draft for draft in drafts() if draft.id in ("loss/one-pair", "ops/attention-mask")]))
    with tempfile.TemporaryDirectory() as name:
        for file, data in small.items():
            (Path(name) / file).write_bytes(data)
        before = _numbers(read(Path(name)))
        saved = store.save(Path(name), 7, {"a": np.arange(6.0).reshape(2, 3), "b": np.float32([1, 2])}, {"seed": 1})
        step = {saved.name: saved.read_bytes()}
        wanted = store.load(saved)
        vector = packaged().find("loss/one-pair")
        answers = {name: np.asarray(value) for name, value in vector.expected.items()}
        archive = io.BytesIO()
        np.savez(archive, **answers)
        dumps = {"d.npz": archive.getvalue()}, {"d.safetensors": write_safetensors(answers, {"vector": vector.id})}

    def dumped(place: Path) -> Any:
        return check_dump(next(place.iterdir()), vector.id, "float64")

    def passed(report: Any) -> str:
        wrong = [row for row in report.rows if row.error > 1e-9 and row.verdict == "pass"]
        return f"PASS with an error of {wrong[0].error}" if wrong and report.passed else ""

    def kept(found: Any) -> str:
        same = (found.step, found.about) == (
            wanted.step,
            wanted.about,
        ) and found.tensors.keys() == wanted.tensors.keys()
        numbers = same and all(np.array_equal(found.tensors[n], v) for n, v in wanted.tensors.items())
        return "" if numbers else "a checkpoint that was not saved"

    def unchanged(found: Any) -> str:
        return "" if _numbers(found) == before else "other numbers in a vector"

    raw, inside = mutations.bytes_, (mutations.bytes_, mutations.json_)
    return {
        "golden json": Kind(small, "golden.json", inside, read, unchanged),
        "golden tensors": Kind(small, "golden.safetensors", (raw, mutations.safetensors), read, unchanged),
        "dump npz": Kind(dumps[0], "d.npz", (raw, mutations.ending, mutations.archive), dumped, passed),
        "dump": Kind(dumps[1], "d.safetensors", (raw, mutations.safetensors), dumped, passed),
        "training": Kind(
            step, saved.name, (raw, mutations.safetensors), lambda p: store.load(next(p.iterdir())), kept, (ValueError,)
        ),
    }


def _numbers(found: Any) -> dict[str, bytes]:
    return {
        f"{vector.id}/{name}": np.asarray(value).tobytes()
        for vector in found.vectors.values()
        for name, value in (*vector.inputs.items(), *vector.expected.items())
    }


def tokenisers() -> dict[str, Kind]:
    """Files of words."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tokenizer"))
    try:
        from corpus import like_gemma
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
    except ImportError:
        return {}
    words = Tokenizer(WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    texts = ["a cat", "Dog <unk>!", ""]

    def ids(maker: Callable[..., Any]) -> Callable[[Path], Any]:
        return lambda place: maker(next(place.iterdir()), 8, "huggingface-2")(texts)

    pieces = {"tokenizer.model": like_gemma()}
    return {
        "tokenizer.json": Kind(
            {"tokenizer.json": words.to_str().encode()},
            "tokenizer.json",
            (mutations.bytes_, mutations.json_, mutations.json_),
            ids(json_tokenizer),
        ),
        "sentencepiece": Kind(
            pieces, "tokenizer.model", (mutations.bytes_, mutations.beginning), ids(sentencepiece_tokenizer)
        ),
    }


def images() -> dict[str, Kind]:
    """Of every format that is opened."""
    y, x = np.mgrid[:24, :32]
    photo = Image.fromarray(np.stack([y * 9, x * 7, (y * x) % 256], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {}
    for format in pictures.formats():
        if format in ("AVIF", "HEIF"):
            continue  # its decoder takes 10 ms: a format of its own in the nightly run
        file = io.BytesIO()
        photo.save(file, format, **({"exif": exif} if format in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
        ways = (mutations.bytes_, mutations.beginning)
        kinds[f"image {format}"] = Kind(
            {"a.jpg": file.getvalue()}, "a.jpg", ways, lambda p: pictures.open_image(p / "a.jpg")
        )
    return kinds


def kinds() -> dict[str, Kind]:
    """All of them, by name."""
    return weights() | golden() | tokenisers() | images()


@contextmanager
def limited(more: int) -> Iterator[None]:
    """This process gets no more address space than it has, and `more`."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def out_of_memory(error: BaseException | None) -> bool:
    """Was there too little memory, at this error or at one that caused it?"""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def try_one(kind: Kind, place: Path) -> tuple[str, str]:
    """What came of reading a folder, in a word; and a complaint, or ""."""
    try:
        found = kind.read(place)
    except UsageError as error:
        return "refused", "allocates above the cap" if out_of_memory(error) else ""
    except kind.allowed as error:
        return "refused", "allocates above the cap" if out_of_memory(error) else ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "untyped", f"{type(error).__name__}: {error}"[:300] + traceback.format_exc(limit=-4)[-900:]
    complaint = kind.judge(found)
    return "taken", complaint


def run(count: int, seed: int, chosen: list[str]) -> dict[str, Any]:
    """Spoil files and read them, in turn of all kinds."""
    all_ = kinds()
    picked = {name: kind for name, kind in all_.items() if not chosen or name in chosen}
    files.CAP = vector_files.CAP = CAP
    pictures.MAX_PIXELS = CAP // 12
    counts: dict[str, Counter[str]] = {name: Counter() for name in picked}
    faults: list[dict[str, Any]] = []
    slowest = 0.0
    others = [kind.files[kind.spoilt] for kind in all_.values()]
    with tempfile.TemporaryDirectory() as above:
        places = {}
        for number, (name, kind) in enumerate(picked.items()):
            places[name] = Path(above) / f"k{number}"
            places[name].mkdir()
            for file, data in kind.files.items():
                (places[name] / file).write_bytes(data)
            word, complaint = try_one(kind, places[name])
            assert word == "taken" and not complaint, (name, word, complaint)
        names = list(picked)
        for number in range(count):
            name = names[number % len(names)]
            kind, rng = picked[name], random.Random(f"{seed}/{number}")
            given = kind.files[kind.spoilt]
            way = rng.choice(kind.ways)
            data = mutations.splice(given, rng.choice(others), rng) if rng.random() < 0.02 else way(given, rng)
            (places[name] / kind.spoilt).write_bytes(data)
            begun = time.perf_counter()
            with limited(2 * CAP):
                word, complaint = try_one(kind, places[name])
            took = time.perf_counter() - begun
            slowest = max(slowest, took)
            counts[name][word] += 1
            if took > SLOW:
                complaint = complaint or f"took {took:.1f} s"
            if complaint:
                faults.append({"kind": name, "number": number, "what": complaint})
                if keep := os.environ.get("KEEP"):
                    (Path(keep) / f"{len(faults)}-{name.replace(' ', '-')}-{kind.spoilt}").write_bytes(data)
    return {"counts": counts, "faults": faults[:50], "number of faults": len(faults), "slowest": slowest}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"  # a base model that a spoilt file names is not looked for in the world
    begun = time.process_time()
    told = run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    print(json.dumps(told | {"CPU seconds": round(time.process_time() - begun, 1)}, indent=1))
