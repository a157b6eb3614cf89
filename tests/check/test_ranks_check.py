"""check_distributed_loss on ranks that are threads: what is not finite, not whole, not in shape, or never ends."""

import numpy as np
import pytest

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss
from siglip_ref.arithmetic.rounded import FORMATS, round_to

HOW = {
    "framework": "numpy", "reduce": "none", "value": "global", "scale": "log", "embeddings": "unit",
    "dtype": "float64", "ranks": ThreadComm.run, "world_size": 3,
}  # fmt: skip


def ring(image, text, log_scale, bias, comm):
    return ring_sigmoid_loss(comm, image, text, log_scale, bias)


def check(change, **how):
    """The report on the ring, whose result on each rank is changed by change(result, rank)."""

    def changed(image, text, log_scale, bias, comm):
        return change(ring(image, text, log_scale, bias, comm), comm.rank)

    return sr.check_distributed_loss(changed, **HOW | how)


def only(rank, **fields):
    """Changes some fields, on one rank or (None) on all."""

    def change(result, where):
        if rank not in (None, where):
            return result
        return result._replace(**{name: fn(getattr(result, name)) for name, fn in fields.items()})

    return change


def nan(values):
    return values * np.nan


def one_nan(values):
    values = np.array(values)
    values.flat[0] = np.nan
    return values


def inf(values):
    return values + np.inf


def test_the_ring_itself_passes_with_a_numpy_dtype():
    report = check(lambda result, rank: result, dtype=np.float64)
    assert report.verdict == "PASS", report


# the value of one rank, of which the others have the right one, was once taken for one that differs least
NOT_FINITE = {
    "loss of rank 1": only(1, loss=nan),
    "loss of the last rank": only(2, loss=nan),
    "loss of all": only(None, loss=nan),
    "infinite loss of rank 2": only(2, loss=inf),
    "d_log_scale of rank 1": only(1, d_log_scale=nan),
    "d_bias of rank 2": only(2, d_bias=nan),
    "infinite d_bias of all": only(None, d_bias=inf),
    "one number of d_text_embed on rank 2": only(2, d_text_embed=one_nan),
    "d_image_embed of rank 0": only(0, d_image_embed=inf),
    "everything": only(None, loss=nan, d_image_embed=nan, d_text_embed=nan, d_log_scale=nan, d_bias=nan),
}


# The two that take fifteen seconds, by night: their kinds stand on another rank, or with another number, by day.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (name in ("loss of the last rank", "d_bias of rank 2")))
        for name in NOT_FINITE
    ],
)
def test_what_is_not_finite_on_any_rank_fails(name):
    report = check(NOT_FINITE[name])
    assert report.verdict == "FAIL", report
    assert not report.passed


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_what_is_not_finite_fails_however_it_is_reduced(reduce):
    report = check(only(1, loss=nan), reduce=reduce, value="local")
    assert report.verdict == "FAIL"


def in_fewer_bits(what, form):
    """The ring, with something rounded on the way; gradients go straight through the rounding."""

    def rounded(name, values):
        return round_to(np.asarray(values, np.float64), FORMATS[form]).astype(values.dtype) if name == what else values

    def fn(image, text, log_scale, bias, comm):
        image, text = rounded("images", image), rounded("texts", text)
        result = ring_sigmoid_loss(comm, image, text, log_scale, bias)
        return result._replace(d_text_embed=rounded("gradients of texts", result.d_text_embed))

    return fn


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["bfloat16", "float16"])
@pytest.mark.parametrize("what", ["images", "texts", "gradients of texts"])
@pytest.mark.sampled(2, in_turn=True)
def test_what_travels_in_fewer_bits_shows(what, form, dtype):
    report = sr.check_ranks(in_fewer_bits(what, form), **HOW | {"dtype": dtype})
    assert report.verdict == "FAIL", report
    rounded = [f"{what} are rounded to {form}" in line for line in report.computes]
    assert any(rounded) == (what != "gradients of texts"), report.computes


def gathered(rows, comm):
    """The rows of all ranks."""
    own, whole = np.zeros((2, comm.size, *rows.shape))
    own[comm.rank] = rows
    comm.Allreduce(own, whole)
    return whole


@pytest.mark.parametrize(
    ("hops", "words"),
    [
        (lambda world: [0], "all remote blocks missing"),
        (lambda world: [world - 1], "the own block missing"),
        (lambda world: range(1, world), "the own block missing"),
    ],
    ids=["own", "last", "remote"],
)
def test_scale_and_bias_that_sum_over_some_blocks_alone_are_told(hops, words):
    """Each rank's share of the two is that of some hops; the value and the embeddings' gradients are right."""

    def fn(image, text, log_scale, bias, comm):
        result = ring_sigmoid_loss(comm, image, text, log_scale, bias)
        pairs, starts = gathered(image, comm), gathered(text, comm)
        total, of_scale, of_bias = sum(map(len, pairs)), 0.0, 0.0
        for rank, x in enumerate(pairs):
            for hop in hops(comm.size):
                y = starts[(rank + hop) % len(pairs)]
                logits = np.exp(log_scale) * x @ y.T + bias
                slopes = (1 / (1 + np.exp(-logits)) - (np.eye(len(x), len(y)) if hop == 0 else 0)) / total
                of_scale, of_bias = of_scale + (slopes * np.exp(log_scale) * (x @ y.T)).sum(), of_bias + slopes.sum()
        return result._replace(d_log_scale=np.asarray(of_scale), d_bias=np.asarray(of_bias))

    report = sr.check_ranks(fn, **HOW)
    told = [line for line in report.computes if line.startswith("not SigLIP's: log_scale, bias: ")]
    assert len(told) == 1 and words in told[0] and "sums over all blocks" in told[0], report.computes


def test_rows_that_only_together_have_the_right_shape_fail():
    whole = []

    def all_on_one(result, rank):
        # all rows on rank 0, none elsewhere: put together they are what they should be
        whole.append(result.d_text_embed)
        rows = np.concatenate([result.d_text_embed] * 3) if rank == 0 else result.d_text_embed[:0]
        return result._replace(d_text_embed=rows)

    report = check(all_on_one)
    row = next(row for row in report.rows if row.name == "text_embed")
    assert row.verdict == "FAIL"
    assert "rank 0's has shape" in row.note


def test_a_row_of_numbers_is_no_gradient_of_the_bias():
    report = check(lambda result, rank: result._replace(d_bias=np.full(4, result.d_bias / 4)))
    row = next(row for row in report.rows if row.name == "bias")
    assert row.verdict == "FAIL" and "expected ()" in row.note


def test_a_rank_that_raises_is_named():
    def raises(result, rank):
        if rank == 2:
            raise RuntimeError("no such column")
        return result

    report = check(raises)
    assert report.verdict == "FAIL" and report.findings[0].id == "rank-failed"
    assert "rank 2 failed at balanced" in report.findings[0].evidence
    assert "no such column (test_ranks_check.py:" in report.findings[0].evidence


def test_threads_that_never_end_do_not_hold_the_caller():
    def waits(image, text, log_scale, bias, comm):
        if comm.rank == 0:
            comm.Sendrecv(text, 1, 7, np.empty_like(text), 1, 7)  # which nobody answers
        return ring(image, text, log_scale, bias, comm)

    report = sr.check_distributed_loss(waits, **HOW | {"limit": 1.0})
    assert report.verdict == "NOT JUDGED"
    assert report.unjudged.why == "did not finish" and report.unjudged.repair.startswith("limit=2")
    assert not report.findings  # no cause is invented
    with pytest.raises(AssertionError):
        report.raise_if_failed()


def test_wrong_numbers_that_came_before_the_end_fail_all_the_same():
    calls = []

    def wrong_then_silent(image, text, log_scale, bias, comm):
        calls.append(comm.rank)
        if len(calls) > 9:
            comm.Sendrecv(text, (comm.rank + 1) % 3, 7, np.empty_like(text), (comm.rank + 1) % 3, 8)
        result = ring(image, text, log_scale, bias, comm)
        return result._replace(loss=2 * result.loss)

    report = sr.check_distributed_loss(wrong_then_silent, **HOW | {"limit": 3.0})
    assert report.verdict == "FAIL"
    assert any("the calls that were left" in line for line in report.not_checked)


def test_a_second_result_that_is_no_list_of_hops_is_not_looked_at_and_said():
    report = check(lambda result, rank: result._replace(loss=(result.loss, {"accuracy": 0.5, "lowest": 1.0})))
    assert report.verdict == "PASS", report
    assert any("a dict (accuracy, lowest): not looked at" in note for note in report.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda result, rank: result[:3], "a tuple of 3"),
        (lambda result, rank: result._replace(loss=np.ones(3)), "an array of shape (3,)"),
        (lambda result, rank: result._replace(loss={"loss": 1.0}), "a dict of 1"),
    ],
)
def test_results_of_another_form_are_wrong_use(change, words):
    with pytest.raises(sr.UsageError) as error:
        check(change)
    assert words in error.value.got


WRONG_USE = {
    "value=both": ({"value": "both"}, "value='both'", 'value="local"'),
    "reduce=avg": ({"reduce": "avg"}, "reduce='avg'", 'reduce="mean"'),
    "reduce=None": ({"reduce": None}, "reduce=None", 'reduce="mean"'),
    "dtype": ({"dtype": np.int8}, "int8", 'dtype="float32"'),
    "world_size True": ({"world_size": True}, "a bool", "world_size=4"),
    "world_size 4.0": ({"world_size": 4.0}, "a float", "world_size=4"),
    "world_size 9": ({"world_size": 9}, "world_size=9", "world_size=4"),
    "limit 0": ({"limit": 0}, "limit=0", "limit=120"),
    "limit NaN": ({"limit": float("nan")}, "limit=nan", "limit=120"),
    "limit word": ({"limit": "60"}, "limit='60'", "limit=120"),
    "unequal word": ({"unequal": "yes"}, "unequal='yes'", "unequal=True"),
    "axis_name": ({"axis_name": "batch"}, "axis_name=", "framework='jax'"),
    "setup": ({"setup": print}, "setup=", "framework='torch'"),
    "ranks": ({"ranks": None}, "none", "ThreadComm.run"),
    "device": ({"device": "cuda"}, "device='cuda'", "check_ranks(fn, 3)"),
    "framework": ({"framework": "keras"}, "'keras'", "siglip_ref.check_ranks"),
    "scale": ({"scale": "square"}, "'square'", 'scale="log"'),
}


@pytest.mark.parametrize("name", WRONG_USE)
def test_arguments_are_refused_with_a_reason(name):
    how, got, repair = WRONG_USE[name]
    with pytest.raises(sr.UsageError) as error:
        sr.check_distributed_loss(ring, **HOW | how)
    assert got in error.value.got
    assert repair in error.value.repair


def test_the_framework_is_seen_by_how_ranks_are_called():
    def in_another_package(image, text, log_scale, bias, comm):
        return ring(image, text, log_scale, bias, comm)

    with pytest.raises(sr.UsageError, match=r"ThreadComm\.run"):  # taken for NumPy, of which ranks= is missing
        sr.check_distributed_loss(in_another_package)
    nowhere = eval("lambda *inputs: inputs", {"__name__": "nowhere"})
    with pytest.raises(sr.UsageError, match=r'siglip_ref\.check_ranks\(fn, framework="torch"\)'):
        sr.check_distributed_loss(nowhere)


def test_a_function_of_other_arguments_is_refused():
    with pytest.raises(sr.UsageError, match="image_shard, text_shard, log_scale, bias, comm"):
        sr.check_distributed_loss(lambda image, text: 0, **HOW)
    with pytest.raises(sr.UsageError, match="give an instance"):
        sr.check_distributed_loss(ThreadComm, **HOW)


@pytest.mark.parametrize("tile", [4, 8, 32])
def test_a_tail_that_is_the_whole_shard_where_none_is_left_is_named(tile):
    """Where pairs of a rank fill whole tiles, x[-rest:] with rest = 0 is all of them."""

    def fn(image, text, log_scale, bias, comm):
        result = ring(image, text, log_scale, bias, comm)
        return result._replace(
            **{name: 2 * x for name, x in result._asdict().items()} if len(image) % tile == 0 else {}
        )

    report = sr.check_distributed_loss(fn, **HOW)
    assert report.verdict == "FAIL"
    assert [finding.id for finding in report.findings] == ["tail-counted-twice"], report.findings
    assert "right at B = 5, wrong at B = 32" in report.findings[0].evidence


@pytest.mark.parametrize("change", [np.abs, lambda s: np.maximum(s, 0), lambda s: np.maximum(s, 1)])
def test_a_scale_that_is_cut_from_below_is_named_on_ranks(change):
    report = sr.check_distributed_loss(lambda x, y, s, b, comm: ring(x, y, change(s), b, comm), **HOW)
    assert report.verdict == "FAIL"
    assert [finding.id for finding in report.findings] == ["scale-clamped"], report.findings
