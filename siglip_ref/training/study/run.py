"""Six of the paper's studies at toy scale, one command each: what still shows on 1,437 digits, and what does not."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.process.atomic import write_atomically
from siglip_ref.process.interrupt import tell, temporary_folder
from siglip_ref.process.outputs import require_free
from siglip_ref.training.loop import Quiet, Run, train
from siglip_ref.training.parallel import Alone
from siglip_ref.training.settings import Settings
from siglip_ref.training.study.table import TOY, Study


@dataclass(frozen=True)
class Result:
    """Of every seed, by line and place: accuracy, and the study's second number."""

    settings: dict[str, Any]
    found: dict[str, list[float]] = field(default_factory=dict)
    also: dict[str, list[float]] = field(default_factory=dict)


def run(
    study: Study, seeds: int, out: Path, say: Callable[[str], None], force: bool = False, quick: bool = False
) -> str:
    """Train every variant with every seed; write NAME.json and NAME.svg, return the page.

    What NAME.json holds already, if it is of this very study, is not repeated; other files are replaced by force only.
    quick : a fiftieth of the steps, to see that it works; the figures say nothing
    """
    path = out / f"{study.name}.json"
    result = Result({**TOY, "seeds": seeds} | ({"quick": True} if quick else {}))
    before = _begun(path, result.settings)
    result.found.update(before.get("found", {}))
    result.also.update(before.get("also", {}))
    require_free(folders=[] if out.is_dir() else [out])
    require_free([path, out / f"{study.name}.svg"] if out.is_dir() and not before else [], force=force)
    out.mkdir(parents=True, exist_ok=True)
    tell(lambda: f"what is finished stays in {path}; the same command goes on with the rest")
    for line, place, changes in study.variants:
        key = f"{line}: {place}"
        found, also = result.found.setdefault(key, []), result.also.setdefault(key, [])
        whole = min(len(found), len(also)) if study.also else len(found)
        del found[whole:], also[whole:]
        for seed in range(whole, seeds):
            settings = Settings(**{**TOY, **changes, "seed": seed})
            done = trained(replace(settings, steps=max(2, settings.steps // 50)) if quick else settings)
            found.append(done.judged[-1]["zero-shot accuracy"])
            also += [study.also[1](done)] if study.also else []
            say(f"{study.name}, {line}: {place}, seed {seed}: {100 * found[-1]:.1f} %")
            write_atomically(path, (json.dumps(asdict(result), indent=1) + "\n").encode())
    draw(study, result, out / f"{study.name}.svg")
    return page(study, result, seeds)


def _begun(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted study of these settings has found so far."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return dict(before) if before["settings"] == settings else {}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or another file
        return {}


class Unnamed(Alone):
    """One process, whose folder nobody needs to know: it is gone with the training."""

    def keeps_in(self, out: Path) -> None:
        pass


def trained(settings: Settings) -> Run:
    """One training, judged on the held-out digits."""
    with temporary_folder() as folder:
        return train(settings, folder, Unnamed(), Quiet(), every=settings.steps, judge_every=settings.steps)


def page(study: Study, result: Result, seeds: int, folder: str = "") -> str:
    """The figure, which lies in a folder, its numbers, and the paper's, in Markdown."""
    head = [study.lines, study.x, "mean %", "deviation", "range", *([study.also[0]] if study.also else [])]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line, place, _ in study.variants:
        key = f"{line}: {place}"
        values = 100 * np.array(result.found[key])
        cells = [line, place, f"{values.mean():.1f}", f"{values.std(ddof=1):.1f}"]
        cells += [f"{values.min():.1f} to {values.max():.1f}"]
        cells += [f"{np.mean(result.also[key]):.1f}"] if study.also else []
        rows.append("| " + " | ".join(cells) + " |")
    table = "\n".join(rows)
    return (
        f"### {study.title}\n\n![{study.title}]({folder}{study.name}.svg)\n\n"
        f"Made by `siglip-ref study {study.name} --seeds {seeds}`: real digits, zero-shot accuracy on 360 that were "
        f"held out, {study.seen}, {seeds} seeds.\n\n{table}\n\n{study.paper}\n\n"
        f"What came out: {outcome(study, result.found)}; in the paper: {study.outcome}.\n\n"
        f"What the toy cannot show: {study.honest}\n"
    )


def outcome(study: Study, found: dict[str, list[float]]) -> str:
    """Of several lines, where each has the highest mean of those at that place; of one, its places in order."""
    means: dict[str, dict[str, float]] = {}
    for line, place, _ in study.variants:
        means.setdefault(line, {})[place] = float(np.mean(found[f"{line}: {place}"]))
    if len(means) == 1:
        (of_place,) = means.values()
        return " > ".join(sorted(of_place, key=lambda place: -of_place[place]))
    leads = {}
    for line, own in means.items():
        rivals = {place: [other[place] for name, other in means.items() if name != line and place in other]
                  for place in own}  # fmt: skip
        leads[line] = [place for place in own if rivals[place] and own[place] >= max(rivals[place])]
    return ", ".join(f"{line} leads at {', '.join(places)}" for line, places in leads.items() if places)


def draw(study: Study, result: Result, path: Path) -> None:
    """Every seed a dot, the mean a line, the same file for the same numbers; the second number below."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = study.name
    shown = [("zero-shot accuracy on held-out digits, %", 100.0, result.found)]
    shown += [(study.also[0], 1.0, result.also)] if study.also else []
    figure = Figure(figsize=(7, 4 * len(shown)), layout="constrained")
    axes: Any = figure.subplots(len(shown), squeeze=False)[:, 0]
    places = list(dict.fromkeys(place for _, place, _ in study.variants))
    for axis, (words, unit, found) in zip(axes, shown, strict=True):
        for line in dict.fromkeys(line for line, _, _ in study.variants):
            own = [number for number, place in enumerate(places) if f"{line}: {place}" in found]
            values = unit * np.array([found[f"{line}: {places[number]}"] for number in own])
            (drawn,) = axis.plot(own, values.mean(1), marker="_", markersize=14, label=line)
            for place, dots in zip(own, values, strict=True):
                axis.plot([place] * len(dots), dots, ".", color=drawn.get_color(), alpha=0.6)
        axis.set_xticks(range(len(places)), places)
        axis.set(xlabel=study.x, ylabel=words)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_title(study.title)
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, image.getvalue())
