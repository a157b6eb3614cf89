"""What a training has saved, in words; nothing heavy loads here, for it is asked when everything ends."""

from pathlib import Path


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def where_it_stands(out: Path) -> str:
    """What is saved of the training in this folder, and what the same command will do."""
    found = checkpoints(out / "checkpoints")
    if not found:
        return f"there is no checkpoint in {out} yet; the same command begins anew"
    step = int(found[-1].stem.partition("-")[2])
    return f"the checkpoint of step {step} is in {out}; the same command goes on from there"
