"""Three of the paper's studies at toy scale, one command each: what still shows on 1,437 digits, and what does not."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.process.atomic import write_atomically
from siglip_ref.process.interrupt import tell, temporary_folder
from siglip_ref.process.outputs import require_free
from siglip_ref.training.loop import Quiet, train
from siglip_ref.training.parallel import Alone
from siglip_ref.training.settings import Settings

SEEN = 32_000  # pictures that every training sees, whatever its batch
TOY: dict[str, Any] = {"data": "digits", "model": "small", "batch": 64, "steps": SEEN // 64, "lr": 3e-3}
CLIP = {"loss": "softmax", "log_scale": math.log(1 / 0.07)}  # as CLIP starts
LOSSES: dict[str, dict[str, Any]] = {"sigmoid": {}, "softmax": CLIP}


@dataclass(frozen=True)
class Study:
    """One figure.

    variants : (line, place on the x axis, settings of the training)
    paper : the paper's own table, as Markdown
    outcome : what comes first in it, in words
    honest : what the toy cannot show
    """

    name: str
    title: str
    x: str
    variants: Sequence[tuple[str, str, dict[str, Any]]]
    paper: str
    outcome: str
    honest: str


def _starts() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for bias, scale in ((None, 10), (-10.0, 10), (-10.0, 1), (0.0, 10), (0.0, 1)):
        start = {"log_scale": math.log(scale), "bias": bias, "without_bias": bias is None}
        yield "sigmoid", f"{'none' if bias is None else f'{bias:g}'}, log {scale}", start


STUDIES = {
    study.name: study
    for study in (
        Study(
            "initialisation",
            "Initial bias and temperature",
            "initial bias b, initial t'",
            tuple(_starts()),
            """Table 4 of arXiv 2303.15343 (B/16, batch 8,192, 900 million pictures, % right):

| b, t' | ImageNet, zero-shot | Pet | CIFAR-100 |
|---|---|---|---|
| none, log 10 | 62.0 | 81.8 | 59.9 |
| -10, log 10 | 63.0 | 82.4 | 61.0 |
| -10, log 1 | 61.0 | 80.0 | 60.4 |
| 0, log 10 | 61.7 | 79.9 | 59.0 |
| 0, log 1 | 53.7 | 73.2 | 53.8 |""",
            "on ImageNet -10, log 10 > none, log 10 > 0, log 10 > -10, log 1 > 0, log 1",
            "The paper's batch has 8,191 negatives for each positive, ours 63, and a tenth of ours are no negatives: "
            "another picture of the same digit. The bias that balances a fresh model is -log(B-1), -9 there and -4.1 "
            "here, so how much a start at -10 helps at scale cannot be read off this figure.",
        ),
        Study(
            "batch",
            "Sigmoid against softmax over the batch size",
            "batch size",
            tuple(
                (loss, str(batch), {**start, "batch": batch, "steps": SEEN // batch})
                for loss, start in LOSSES.items()
                for batch in (16, 32, 64, 128)
            ),
            """Table 5 of arXiv 2303.15343 (B/16, 3 billion pictures seen, ImageNet zero-shot, % right):

| batch | sigmoid | softmax |
|---|---|---|
| 512 | 51.5 | 47.7 |
| 1k | 57.3 | 53.2 |
| 2k | 62.1 | 59.3 |
| 4k | 65.3 | 63.8 |
| 8k | 68.6 | 66.6 |
| 32k | 69.9 | 69.9 |
| 98k | 69.5 | 69.7 |""",
            "sigmoid leads up to 8k",
            "Every training sees as many pictures, so a larger batch means fewer steps; one learning rate serves all. "
            "With ten classes a batch of 16 holds most of them already, and the larger it is the more of its negatives "
            "are pictures of the same digit. So a larger batch brings no harder negatives here, which is what it is "
            "for: the figure shows mostly how many steps a toy needs.",
        ),
        Study(
            "noise",
            "Robustness to shuffled captions",
            "pairs with the caption of another picture",
            tuple(
                (loss, f"{share:.0%}", {**start, "shuffled": share})
                for loss, start in LOSSES.items()
                for share in (0.0, 0.3, 0.6)
            ),
            "Section 4.10 and appendix E of arXiv 2303.15343 (M/16, batch 16,384, 3.6 billion pictures) give curves, "
            "no table: pictures, texts or pairs are corrupted with growing probability, and the sigmoid loss stays "
            "above the softmax loss throughout.",
            "sigmoid leads throughout",
            "Of the paper's kinds of noise this is one, shuffled pairs. A tenth of the shuffled captions is right by "
            "accident, since there are ten digits.",
        ),
    )
}


@dataclass(frozen=True)
class Result:
    """Accuracy of every seed, by line and place."""

    settings: dict[str, Any]
    found: dict[str, list[float]] = field(default_factory=dict)


def run(study: Study, seeds: int, out: Path, say: Callable[[str], None], force: bool = False) -> str:
    """Train every variant with every seed; write NAME.json and NAME.svg, return the page.

    What NAME.json holds already, if it is of this very study, is not repeated; other files are replaced by force only.
    """
    path = out / f"{study.name}.json"
    result = Result({**TOY, "seeds": seeds})
    result.found.update(before := _begun(path, result.settings))
    require_free(folders=[] if out.is_dir() else [out])
    require_free([path, out / f"{study.name}.svg"] if out.is_dir() and not before else [], force=force)
    out.mkdir(parents=True, exist_ok=True)
    tell(lambda: f"what is finished stays in {path}; the same command goes on with the rest")
    for line, place, changes in study.variants:
        found = result.found.setdefault(f"{line}: {place}", [])
        for seed in range(len(found), seeds):
            found.append(accuracy(Settings(**{**TOY, **changes, "seed": seed})))
            say(f"{study.name}, {line}: {place}, seed {seed}: {100 * found[-1]:.1f} %")
            write_atomically(path, (json.dumps(asdict(result), indent=1) + "\n").encode())
    draw(study, result.found, out / f"{study.name}.svg")
    return page(study, result.found, seeds)


def _begun(path: Path, settings: dict[str, Any]) -> dict[str, list[float]]:
    """What an interrupted study of these settings has found so far."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return dict(before["found"]) if before["settings"] == settings else {}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or another file
        return {}


class Unnamed(Alone):
    """One process, whose folder nobody needs to know: it is gone with the training."""

    def keeps_in(self, out: Path) -> None:
        pass


def accuracy(settings: Settings) -> float:
    """Zero-shot accuracy on held-out digits after one training."""
    with temporary_folder() as folder:
        run = train(settings, folder, Unnamed(), Quiet(), every=settings.steps, judge_every=settings.steps)
    return run.judged[-1]["zero-shot accuracy"]


def page(study: Study, found: dict[str, list[float]], seeds: int, folder: str = "") -> str:
    """The figure, which lies in a folder, its numbers, and the paper's, in Markdown."""
    rows = []
    for line, place, _ in study.variants:
        values = 100 * np.array(found[f"{line}: {place}"])
        spread = f"{values.std(ddof=1):.1f} | {values.min():.1f} to {values.max():.1f}"
        rows.append(f"| {line} | {place} | {values.mean():.1f} | {spread} |")
    table = "\n".join([f"| loss | {study.x} | mean % | deviation | range |", "|---|---|---|---|---|", *rows])
    return (
        f"### {study.title}\n\n![{study.title}]({folder}{study.name}.svg)\n\n"
        f"Made by `siglip-ref study {study.name} --seeds {seeds}`: real digits, zero-shot accuracy on 360 that were "
        f"held out, {SEEN:,} pictures seen by each training, {seeds} seeds.\n\n{table}\n\n{study.paper}\n\n"
        f"What came out: {outcome(study, found)}; in the paper: {study.outcome}.\n\n"
        f"What the toy cannot show: {study.honest}\n"
    )


def outcome(study: Study, found: dict[str, list[float]]) -> str:
    """Of two losses, where each has the higher mean; of one, its starts in order."""
    means: dict[str, dict[str, float]] = {}
    for line, place, _ in study.variants:
        means.setdefault(line, {})[place] = float(np.mean(found[f"{line}: {place}"]))
    if len(means) == 1:
        (of_place,) = means.values()
        return " > ".join(sorted(of_place, key=lambda place: -of_place[place]))
    leads = {line: [place for place in own if all(own[place] >= other[place] for other in means.values())]
             for line, own in means.items()}  # fmt: skip
    return ", ".join(f"{line} leads at {', '.join(places)}" for line, places in leads.items() if places)


def draw(study: Study, found: dict[str, list[float]], path: Path) -> None:
    """Every seed a dot, the mean a line, the same file for the same numbers."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = study.name
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis: Any = figure.subplots()
    places = list(dict.fromkeys(place for _, place, _ in study.variants))
    for line in dict.fromkeys(line for line, _, _ in study.variants):
        values = 100 * np.array([found[f"{line}: {place}"] for place in places])
        (drawn,) = axis.plot(range(len(places)), values.mean(1), marker="_", markersize=14, label=line)
        for place, dots in enumerate(values):
            axis.plot([place] * len(dots), dots, ".", color=drawn.get_color(), alpha=0.6)
    axis.set_xticks(range(len(places)), places)
    axis.set(title=study.title, xlabel=study.x, ylabel="zero-shot accuracy on held-out digits, %")
    axis.grid(alpha=0.3)
    axis.legend()
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, image.getvalue())
