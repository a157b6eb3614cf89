"""The end of a training: a model that every command here takes, curves, and a sentence."""

import shutil
from pathlib import Path

from siglip_ref.checkpoint.load import resolve
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.training.loop import Quiet, Run
from siglip_ref.training.parallel import Parallel
from siglip_ref.training.settings import Settings, TrainingStopped
from siglip_ref.training.show import Terminal, in_words, write_history
from siglip_ref.use.companions import SETTINGS_FILES
from siglip_ref.use.exported import FILES as EXPORTED
from siglip_ref.use.exported import write_modules, write_settings
from siglip_ref.use.preprocess import PREPROCESS
from siglip_ref.use.search.classifier import Texts, write_classifier
from siglip_ref.use.tokenizer import FILES


def watcher(parallel: Parallel) -> Quiet:
    """Only the first rank speaks."""
    return Terminal() if parallel.rank == 0 else Quiet()


def finish(settings: Settings, out: Path, run: Run, parallel: Parallel, show: Quiet) -> None:
    """Write the model and the curves; say where they are."""
    if parallel.rank > 0:
        return
    parallel.at(run.step, "writing the model")
    try:
        write_model(settings, out / "model", run)
        write_history(out, run)
    except OSError as error:
        raise TrainingStopped(
            run.step, f"the model cannot be written: {error}", "make room, then give the same command again"
        ) from error
    if run.broken:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(run.skipped.items())[:3])
        count = (
            "1 image could not be read and was"
            if run.broken == 1
            else f"{run.broken} images could not be read and were"
        )
        show.say(f"{count} skipped" + f": {some}" * bool(some))
    show.say(f"{out / 'model'}: " + (in_words(run.judged[-1]) if run.judged else "not judged"))


def write_model(settings: Settings, place: Path, run: Run) -> None:
    """All files of the model, each whole: written beside, then put in place."""
    beside = place.with_name(f"{place.name}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    beside.mkdir()
    whole = beside / "model.npz" if run.task.format == "big_vision" else beside
    params, cfg = run.task.beside.model(run.params, run.task.cfg)
    save_checkpoint(whole, params, cfg, run.task.format)
    if "head/kernel" in run.params:
        texts: Texts = "untrained" if not settings.init else "fits" if settings.freeze else "left behind"
        write_classifier(beside, run.params, run.task.classes, run.task.scale(run.params), texts)
    if settings.init:
        copy_companions(resolve(settings.init), beside)
        if run.task.format == "huggingface" and not (beside / "modules.json").exists():
            write_modules(beside, cfg)
    else:
        write_settings(beside, PREPROCESS["huggingface"], cfg)
    place.mkdir(exist_ok=True)
    for file in beside.iterdir():
        file.replace(place / file.name)
    beside.rmdir()


def copy_companions(source: Path, target: Path) -> None:
    """The tokeniser and the settings that came with the checkpoint."""
    folder = source if source.is_dir() else source.parent
    for name in dict.fromkeys((*FILES, *SETTINGS_FILES, *EXPORTED)):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
