"""The end of a training: a model that every command here takes, curves, and a sentence."""

from pathlib import Path

from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.training.loop import Quiet, Run
from siglip_ref.training.parallel import Parallel
from siglip_ref.training.settings import Settings, TrainingStopped
from siglip_ref.training.show import Terminal, in_words, write_history


def watcher(parallel: Parallel) -> Quiet:
    """Only the first rank speaks."""
    return Terminal() if parallel.rank == 0 else Quiet()


def finish(settings: Settings, out: Path, run: Run, parallel: Parallel, show: Quiet) -> None:
    """Write the model and the curves; say where they are."""
    if parallel.rank > 0:
        return
    parallel.at(run.step, "writing the model")
    try:
        save_checkpoint(out / "model", run.params, run.task.cfg, "huggingface")
        write_history(out, run)
    except OSError as error:
        raise TrainingStopped(
            run.step, f"the model cannot be written: {error}", "make room, then give the same command again"
        ) from error
    show.say(f"{out / 'model'}: " + (in_words(run.judged[-1]) if run.judged else "not judged"))
