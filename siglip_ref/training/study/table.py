"""Six of the paper's studies as data: what is varied, the paper's own numbers, and what a toy cannot show."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip_ref.training.loop import Run

SEEN = 32_000  # pictures that every training sees, whatever its batch
TOY: dict[str, Any] = {"data": "digits", "model": "small", "batch": 64, "steps": SEEN // 64, "lr": 3e-3}
CLIP = {"loss": "softmax", "log_scale": math.log(1 / 0.07)}  # as CLIP starts
LOSSES: dict[str, dict[str, Any]] = {"sigmoid": {}, "softmax": CLIP}


@dataclass(frozen=True)
class Study:
    """One figure.

    variants : (line, place on the x axis, settings of the training); lines : what tells them apart
    paper : the paper's own table, as Markdown
    outcome : what comes first in it, in words
    honest : what the toy cannot show
    seen : by each training
    also : a second number of each training, by its name
    """

    name: str
    title: str
    x: str
    variants: Sequence[tuple[str, str, dict[str, Any]]]
    paper: str
    outcome: str
    honest: str
    lines: str = "loss"
    seen: str = f"{SEEN:,} pictures seen by each training"
    also: tuple[str, Callable[[Run], float]] | None = None


def _starts() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for bias, scale in ((None, 10), (-10.0, 10), (-10.0, 1), (0.0, 10), (0.0, 1)):
        start = {"log_scale": math.log(scale), "bias": bias, "without_bias": bias is None}
        yield "sigmoid", f"{'none' if bias is None else f'{bias:g}'}, log {scale}", start


def _negatives() -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield "all", "1:63", {}
    for kind in ("random", "hard", "easy"):
        for ratio in (16, 6.3, 1.6):
            yield kind, f"1:{ratio:g}", {"negatives": ratio, "kept": kind}
    for ratio in (16, 6.3, 1.6):
        yield "hard, as many pairs", f"1:{ratio:g}", {
            "negatives": ratio, "kept": "hard", "steps": round(TOY["steps"] * 63 / ratio)
        }  # fmt: skip


def highest_rise(run: Run) -> float:
    """Of a step's loss over the mean of the ten before, in per cent."""
    loss = np.array(run.history)[:, 0]
    rises = [loss[step] / loss[step - 10 : step].mean() - 1 for step in range(10, len(loss))]
    return 100 * float(max(rises, default=0.0))


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
        Study(
            "beta2",
            "Adam's beta2 and large batches",
            "batch size",
            tuple(
                (f"beta2 {beta2:g}", str(batch), {"beta2": beta2, "batch": batch})
                for beta2 in (0.95, 0.99, 0.999)
                for batch in (64, 256, 512)
            ),
            "Section 4.7 and figure 5 of arXiv 2303.15343 (B, Adam and Adafactor) give curves, no table: as the batch "
            "grows, spikes of the gradient's length make large steps, and the loss jumps; with beta2 0.95 in place of "
            "0.999 spikes still come, and the training stays stable.",
            "0.95 is stable where 0.999 is not",
            "A model of 32 numbers a token is stable by itself: what blows up a large one over billions of pictures "
            "does not come here, and with three or ten times the rate the loss stands still, it does not jump. A batch "
            "of 512 is a third of all pictures, so its gradient has little noise; the paper's batches are a small part "
            "of their data. All trainings have as many steps, so a larger batch sees more pictures.",
            "beta2",
            "500 steps each",
            ("highest rise of the loss over the ten steps before, %", highest_rise),
        ),
        Study(
            "negatives",
            "Negatives for each positive",
            "positives to negatives",
            tuple(_negatives()),
            "Section 4.8 and figure 6 of arXiv 2303.15343 (SigLiT, batch 16k, 900 million) give bars, no table. From "
            "1:16k down to 1:1.6: random masking loses quality, the easiest negatives alone do not work at all, the "
            "hardest alone almost keep it, and a little more than that if trained until as many pairs were seen. With "
            "fewer negatives the learnt bias is higher.",
            "hard > random > easy at each ratio; hard with as many pairs is best",
            "The paper starts from 16 thousand negatives for each positive, the toy from 63: its strongest mask takes "
            "away 39 of 40 negatives, the paper's 9,999 of 10,000. A tenth of our negatives are pictures of the same "
            "digit, no negatives at all, and they are the hardest. As many pairs means up to forty times the steps, "
            "and so much longer a schedule.",
            "negatives kept",
            f"{SEEN:,} pictures seen by each training, or as many pairs as without a mask",
            ("bias at the end", lambda run: float(run.params["bias"])),
        ),
        Study(
            "bottleneck",
            "A token embedding of low rank",
            "rank K of 32",
            (
                ("sigmoid", "full", {}),
                *(("sigmoid", str(rank), {"bottleneck": rank}) for rank in (16, 8, 4, 2, 1)),
            ),
            "Section 4.3 of arXiv 2303.15343 (mSigLIP B, 900 million pictures): K = 96 of 768 costs about half a point "
            "of ImageNet zero-shot against the full table of 250 thousand tokens, whose memory it cuts to an eighth.",
            "an eighth of the width costs about half a point",
            "Captions here are spelt in bytes, of which 25 occur, and say ten things; the paper's vocabulary has 250 "
            "thousand words of a hundred languages. So the toy shows that few numbers a letter are enough for ten "
            "words, not what a rank costs a language; there is no memory to be saved; and seeds differ by ten points "
            "and more, so half a point could not be seen. First values and decay of the two factors are not published: "
            "here their product has the deviation of the full table.",
        ),
    )
}
