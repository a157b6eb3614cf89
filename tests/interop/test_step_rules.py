"""check_step works out which other rule a step follows, and says no more than its numbers prove."""

import math

import numpy as np
import pytest
import torch
from models import TINY, hugging_face

import siglip_ref as sr
from siglip_ref.model.optim import cosine

LR, DECAY = 2e-3, 0.2
RULE = sr.AdamW(lr=LR, beta2=0.95, decay=DECAY, max_norm=1.0)


def warm(k):
    return float(cosine(k, 30, 4))


def as_is(x):
    return x


def bfloat16(x):
    return torch.from_numpy(np.asarray(x)).bfloat16().float().numpy()


def float16(x):
    return np.asarray(x, np.float16).astype(np.float32)


def by_length(grads):
    length = math.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in grads.values()))
    return {n: g * np.float32(min(1.0, 1.0 / (length + 1e-6))) for n, g in grads.items()}


def by_value(limit):
    return lambda grads: {n: np.clip(g, -limit, limit) for n, g in grads.items()}


def by_tower(grads):
    towers = {n.split("/")[0] for n in grads}
    return {
        n: g for t in towers for n, g in by_length({n: g for n, g in grads.items() if n.split("/")[0] == t}).items()
    }


def hand_made(
    clip=by_length,
    of_grads=as_is,
    first=as_is,
    second=as_is,
    stored=as_is,
    after=lambda params: params,
    at=lambda k: 1.0,
    of_decay=lambda k: 1.0,
):
    """AdamW in float32 by hand. first, second: rounding of the moments that the step uses, stored: of both behind it;
    at, of_decay: the factor on lr in the step and in the decay; after: what happens to the parameters behind it."""

    def update(params, grads, state):
        k, m, v = state or (0, {}, {})
        grads = clip({n: of_grads(g) for n, g in grads.items()})
        moved = {}
        for n, p in params.items():
            m[n] = first(np.float32(0.9) * m.get(n, 0 * p) + np.float32(0.1) * grads[n])
            v[n] = second(np.float32(0.95) * v.get(n, 0 * p) + np.float32(0.05) * grads[n] ** 2)
            length = np.sqrt(v[n] / np.float32(1 - 0.95 ** (k + 1))) + np.float32(1e-8)
            kept = np.float32(1 - LR * of_decay(k) * (DECAY if n.endswith("/kernel") else 0.0))
            moved[n] = p * kept - np.float32(LR * at(k) / (1 - 0.9 ** (k + 1))) * m[n] / length
            m[n], v[n] = stored(m[n]), stored(v[n])
        return {n: np.asarray(p, np.float32) for n, p in after(moved).items()}, (k + 1, m, v)

    return update


def cut(limit, *names):
    return lambda params: {n: np.clip(p, -limit, limit) if n in names else p for n, p in params.items()}


def unit_rows(params):
    name = "text/token"
    rows = params[name] / np.linalg.norm(params[name], axis=1, keepdims=True)
    return params | {name: rows}


def report_of(update, rule=RULE, **how):
    return sr.check_step(update, rule, dtype="float32", framework="numpy", **how)


@pytest.mark.parametrize("schedule", [None, warm])
def test_the_hand_made_step_is_right(schedule):
    at = schedule or (lambda k: 1.0)
    report = report_of(hand_made(at=at, of_decay=at), schedule=schedule)
    assert report.verdict == "PASS" and not report.findings, report


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (hand_made(second=bfloat16), "the second moment kept in bfloat16, which the step itself uses"),
        (hand_made(first=bfloat16), "the first moment kept in bfloat16, which the step itself uses"),
        (hand_made(first=bfloat16, second=bfloat16), "both moments kept in bfloat16, which the step itself uses"),
        (hand_made(stored=bfloat16), "both moments rounded to bfloat16 between steps"),
        (hand_made(first=float16), "the first moment kept in float16, which the step itself uses"),
        (hand_made(clip=lambda grads: {n: bfloat16(g) for n, g in by_length(grads).items()}), "gradients rounded to"),
        (hand_made(clip=by_tower), "each tower clipped by its own length"),
        (hand_made(clip=by_value(0.05)), "each number of the gradients cut to -0.05 .. 0.05"),
        (hand_made(after=cut(40.0, "far/kernel")), "far/kernel at least -40 and at most 40"),
        (hand_made(after=unit_rows), "text/token (axis -1)"),
    ],
)
@pytest.mark.sampled(2)
def test_the_rule_is_told(update, said):
    report = report_of(update)
    assert report.verdict == "FAIL" and len(report.findings) == 1, report
    assert said in report.findings[0].evidence and "every step is right with" in report.findings[0].evidence


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (hand_made(at=warm), "a decay without the schedule"),
        (hand_made(of_decay=warm), "the schedule in the decay alone, and not in the step"),
        (hand_made(at=warm, of_decay=lambda k: warm(k) ** 2), "a decay by lr and twice the schedule"),
    ],
)
def test_where_the_schedule_is_missing_is_told(update, said):
    report = report_of(update, schedule=warm)
    assert report.verdict == "FAIL" and len(report.findings) == 1, report
    assert said in report.findings[0].evidence


def test_a_clip_where_none_was_declared_is_told():
    rule = sr.AdamW(lr=LR, beta2=0.95, decay=DECAY)
    evidence = report_of(hand_made(clip=by_length), rule).findings[0].evidence
    assert "gradients clipped to the length 1" in evidence


def test_of_two_that_do_the_same_here_both_are_told_and_in_one_finding():
    report = report_of(hand_made(clip=by_value(1.0)))
    [finding] = report.findings
    assert "gradients that are not clipped; the same here: " in finding.evidence


def test_what_no_rule_gives_is_not_named():
    rng = np.random.default_rng(3)
    noisy = hand_made(clip=lambda grads: {n: g * rng.uniform(0.5, 1.5, g.shape).astype("f") for n, g in grads.items()})
    report = report_of(noisy)
    assert report.verdict == "FAIL" and {finding.id for finding in report.findings} == {"unknown"}, report


def accumulated(arrives, divisor):
    """A step of a model over 4 micro-batches. arrives: whether the gradient of micro-batch i counts."""
    model = hugging_face(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)

    def step(images, tokens):
        optimizer.zero_grad()
        for i, (pixels, words) in enumerate(zip(images.chunk(4), tokens.chunk(4), strict=True)):
            if arrives(i):
                (model(pixel_values=pixels, input_ids=words, return_loss=True).loss / divisor).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return sr.check_step(step, sr.AdamW(lr=LR, beta2=0.95, decay=0.0, max_norm=1.0), model, accumulate=4)


@pytest.mark.parametrize(
    ("arrives", "divisor", "said"),
    [
        (lambda i: i == 0, 4, "gradients of the first of 4 micro-batches alone"),
        (
            lambda i: i == 2,
            1,
            "gradients of number 3 of 4 micro-batches alone (a sum over pairs, divided by 8), times 4",
        ),
        (lambda i: i < 3, 4, "gradients of 4 micro-batches without the last"),
        (lambda i: True, 5, "gradients times 0.8 before the clip"),
        (lambda i: True, 4, ""),
    ],
)
def test_which_micro_batches_arrive_is_told(arrives, divisor, said):
    report = accumulated(arrives, divisor)
    assert (report.verdict == "PASS") == (not said)
    assert [said in finding.evidence for finding in report.findings] == [True] * bool(said), report


def paired(loss):
    """A step of a model whose loss is given the batch."""
    model = hugging_face(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)

    def step(images, tokens):
        optimizer.zero_grad()
        loss(model, images, tokens).backward()
        optimizer.step()

    return sr.check_step(step, sr.AdamW(lr=LR, beta2=0.95, decay=0.0), model)


def of_pairs(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def softmax(model, images, tokens):
    logits = model(pixel_values=images, input_ids=tokens).logits_per_text
    own = torch.arange(len(logits))
    return (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda m, images, tokens: of_pairs(m, images, tokens.roll(1, 0)), "whose texts are moved by 7"),
        (lambda m, images, tokens: sum(of_pairs(m, images[k::2], tokens[k::2]) for k in (0, 1)), "cut strided"),
        (lambda m, images, tokens: of_pairs(m, images[:6], tokens[:6]), "of the first 6 pairs alone"),
        (softmax, "of a softmax loss, both ways"),
    ],
)
def test_which_gradients_arrived_is_told(loss, said):
    report = paired(loss)
    [finding] = report.findings
    assert report.verdict == "FAIL" and "every step is right with gradients of" in finding.evidence
    assert said in finding.evidence
