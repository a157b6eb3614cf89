"""Torch losses that are wrong where a tile divides the batch or the width, or where the scale is less than 1."""

import pytest

import siglip_ref as sr

torch = pytest.importorskip("torch")

WHOLE = "whole tiles (B=128, D=16)"


def pairs(image, text, log_scale, bias):
    """The loss of each pair, (B, B)."""
    logits = log_scale.exp() * image @ text.T + bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -torch.nn.functional.logsigmoid(labels * logits)


def plain(image, text, log_scale, bias):
    return pairs(image, text, log_scale, bias).sum() / len(image)


def in_tiles(tile, tail):
    """Whole tiles of images one after the other, then what `tail` makes of the rest."""

    def loss(image, text, log_scale, bias):
        terms = pairs(image, text, log_scale, bias)
        rest = len(image) % tile
        total = sum(terms[begin : begin + tile].sum() for begin in range(0, len(image) - rest, tile))
        return (total + tail(terms, rest)) / len(image)

    return loss


def all_again(tile):
    return in_tiles(tile, lambda terms, rest: terms[-rest:].sum())


def nothing_but_the_tail(image, text, log_scale, bias):
    """What stands before the tail is empty where there is none."""
    terms = pairs(image, text, log_scale, bias)
    rest = len(image) % 8
    return (terms[:-rest].sum() + terms[len(image) - rest :].sum()) / len(image)


def one_tile_fewer(image, text, log_scale, bias):
    """The last tile counts as the tail, though no row is left for that."""
    terms = pairs(image, text, log_scale, bias)
    whole, rest = max(len(image) // 16 - (len(image) % 16 == 0), 0), len(image) % 16
    return (terms[: 16 * whole].sum() + terms[len(image) - rest :].sum()) / len(image)


def a_tile_of_padding(image, text, log_scale, bias):
    """Padded up to the next tile, by a whole one where nothing is missing, which is then counted."""
    missing = 32 - len(image) % 32
    counted = missing if missing == 32 else 0
    padded = torch.cat([image, torch.zeros(counted, image.shape[1], dtype=image.dtype)])
    logits = log_scale.exp() * padded @ text.T + bias
    labels = 2 * torch.eye(len(padded), len(text), dtype=logits.dtype) - 1
    return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(image)


def width_again(tile):
    """The scores summed in tiles of the width, and the tail of it."""

    def loss(image, text, log_scale, bias):
        width = image.shape[1]
        rest = width % tile
        whole = width - rest
        similarity = image[:, :whole] @ text[:, :whole].T + image[:, -rest:] @ text[:, -rest:].T
        logits = log_scale.exp() * similarity + bias
        labels = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
        return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(image)

    return loss


def text_gradient_again(image, text, log_scale, bias):
    """Right but for one gradient, whose tail is all of it."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows):
            return rows.clone()

        @staticmethod
        def backward(ctx, d):
            d = d.clone()
            d[-(len(d) % 64) :] += d[-(len(d) % 64) :] if len(d) % 64 == 0 else 0
            return d

    return plain(image, Doubled.apply(text), log_scale, bias)


TAILS = {
    "tile 2": (all_again(2), "tail-counted-twice"),
    "tile 8": (all_again(8), "tail-counted-twice"),
    "tile 128": (all_again(128), "tail-counted-twice"),
    "nothing before": (nothing_but_the_tail, "beyond-a-tile"),
    "one fewer": (one_tile_fewer, "beyond-a-tile"),
    "padding": (a_tile_of_padding, "beyond-a-tile"),
    "width, 8": (width_again(8), "tail-counted-twice"),
    "width, 64": (width_again(64), "tail-counted-twice"),
    "one gradient": (text_gradient_again, "tail-counted-twice"),
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.sampled(3)
def test_a_tail_where_none_is_left_is_named(name: str) -> None:
    loss, wanted = TAILS[name]
    report = sr.check_loss(loss, "torch")
    assert report.verdict == "FAIL"
    assert [finding.id for finding in report.findings] == [wanted], report.findings
    assert "leave no tail" in report.findings[0].evidence
    letter = "D" if name.startswith("width") else "B"
    assert f"wrong at {letter} = " in report.findings[0].evidence


@pytest.mark.parametrize("dims", [{"batch": 8, "dim": 8}, {"batch": 128, "dim": 64}])
def test_with_dims_that_leave_no_other_batch_both_names_are_given(dims: dict[str, int]) -> None:
    report = sr.check_loss(all_again(8), "torch", dims=dims)
    assert [finding.id for finding in report.findings] == ["tail-counted-twice", "both-directions-summed"]


def test_with_dims_that_leave_other_batches_it_is_named_alone() -> None:
    report = sr.check_loss(all_again(16), "torch", dims={"batch": 8, "dim": 8})
    assert [finding.id for finding in report.findings] == ["tail-counted-twice"], report.findings
    report = sr.check_loss(width_again(8), "torch", dims={"batch": 8, "dim": 8})
    assert [finding.id for finding in report.findings] == ["tail-counted-twice"], report.findings


def test_two_directions_keep_their_name_where_batches_tell() -> None:
    report = sr.check_loss(lambda *inputs: 2 * plain(*inputs), "torch")
    assert [finding.id for finding in report.findings] == ["both-directions-summed"]


@pytest.mark.parametrize("tile", [256, 1024])
def test_tails_of_large_tiles_are_named_at_a_real_size(tile: int) -> None:
    report = sr.check_loss(all_again(tile), "torch", size="real", scale="log", embeddings="unit")
    assert report.verdict == "FAIL"
    assert [finding.id for finding in report.findings] == ["tail-counted-twice"], report.findings
    assert "wrong at whole large tiles (B=1024, D=14)" in report.findings[0].evidence


SCALES = {
    "cut at 0": lambda s: s.clamp(min=0),
    "relu": lambda s: s.relu(),
    "cut at 1": lambda s: s.clamp(min=1),
    "cut on both sides": lambda s: s.clamp(0, 7),
    "without its sign": lambda s: s.abs(),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_that_is_cut_from_below_is_named(name: str) -> None:
    report = sr.check_loss(lambda x, y, s, b: plain(x, y, SCALES[name](s), b), "torch")
    assert report.verdict == "FAIL"
    assert [finding.id for finding in report.findings] == ["scale-clamped"], report.findings
    assert {row.probe for row in report.details if row.verdict == "FAIL"} == {"small scale (B=9, D=20)"}


def test_the_scale_itself_too() -> None:
    def loss(image, text, scale, bias):
        logits = scale.clamp(min=1) * image @ text.T + bias
        labels = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
        return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(image)

    report = sr.check_loss(loss, "torch")
    assert [finding.id for finding in report.findings] == ["scale-clamped"], report.findings
    assert 'scale="linear"' in report.conventions


@pytest.mark.parametrize("change", [lambda b: b.clamp(max=0), lambda b: -b.abs(), lambda b: b.clamp(max=0.5)])
def test_a_bias_that_stays_negative_fails_where_it_is_moderate_and_positive(change) -> None:
    report = sr.check_loss(lambda x, y, s, b: plain(x, y, s, change(b)), "torch")
    assert any(row.verdict == "FAIL" and row.probe.startswith("small scale") for row in report.details)


def test_a_loss_that_differs_from_call_to_call_says_so() -> None:
    def loss(image, text, log_scale, bias):
        return plain(torch.nn.functional.dropout(image, 0.1), text, log_scale, bias)

    report = sr.check_loss(loss, "torch", scale="log", embeddings="unit")
    assert report.verdict == "FAIL" and len(report.findings) == 1
    assert report.findings[0].evidence.startswith("two calls with the same inputs differ by more than rounding: loss")


def test_a_report_says_up_to_how_many_pairs_it_judged() -> None:
    report = sr.check_loss(plain, "torch", scale="log", embeddings="unit")
    assert "judged at up to 1,151 pairs" in str(report)
    report = sr.check_loss(plain, "torch", scale="log", embeddings="unit", dims=[(9, 20), (22, 7)])
    assert "judged at up to 22 pairs" in str(report)
