"""deterministic=True: equal bits for any number of ranks, threads, tiles and any order, on threads and on MPI."""

import json
import math
import threading
from dataclasses import replace

import numba
import numpy as np
import pytest
from deterministic_cases import KINDS, PAIRS, SHARDS, bits, shards
from launch import program
from ring_cases import BIAS, LOG_SCALE, on_threads
from threadpoolctl import threadpool_info, threadpool_limits

from mpi.agree import Disagreement
from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss
from mpi.schemes import REPRODUCIBLE
from siglip_ref import fast, ops
from siglip_ref.errors import UsageError
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops import pair_block
from siglip_ref.ops.reproducible import blocks
from siglip_ref.process.blas_threads import blas_on_one_thread

OPERATIONS = {"ops": ops, "fast": fast}
RECORDS = {"ops": SPECIFICATION, "fast": fast.OPS}
CUTS = [sizes for cuts in SHARDS.values() for sizes in cuts]


WIDE = 1001  # OpenBLAS divides products this wide among its threads in a way that shows in their bits


def one_process(kind, namespace=ops, dim=24, **options):
    (x,), (y,) = shards([PAIRS], kind, dim)
    return sigmoid_loss(x, y, LOG_SCALE, BIAS, deterministic=True, ops=namespace, **options)


@pytest.mark.parametrize("namespace", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_bits_for_every_way_to_cut_the_batch(kind, namespace):
    wanted = bits([one_process(kind, OPERATIONS[namespace])])
    for sizes in CUTS:
        for scheme in REPRODUCIBLE:
            options = {"scheme": scheme, "deterministic": True, "ops": OPERATIONS[namespace]}
            assert bits(on_threads(*shards(sizes, kind), **options)) == wanted, (sizes, scheme)


@pytest.mark.parametrize("ranks", SHARDS)
def test_equal_bits_on_mpi(ranks):
    run = program("deterministic.py", ranks=ranks)
    assert run.code == 0 and not run.left, run
    for name, found in json.loads(run.out).items():
        assert set(found) == {bits([one_process(np.dtype(name).type)])}, name


@pytest.mark.parametrize("kind", KINDS)
def test_in_floats_the_bits_depend_on_all_of_it(kind):
    """So the tests above can fail: the same granules, added as they come."""
    found = {bits(on_threads(*shards(sizes, kind), tile=blocks.GRANULE)) for sizes in CUTS}
    assert len(found) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_granule_summed_in_floats_is_noticed(kind, monkeypatch):
    """What a granule gives must not meet anything in floats before it is in the tally."""

    def two_by_two(sums, terms):
        held = waiting.setdefault(threading.get_ident(), [])
        if terms.shape[0] == blocks.GRANULE:
            held.append(terms)
            if len(held) == 1:
                return
            terms = held.pop() + held.pop()
        put(sums, terms)

    put, waiting = blocks.put, {}
    monkeypatch.setattr(blocks, "put", two_by_two)
    cuts = ([4 * blocks.GRANULE, 37], [2 * blocks.GRANULE, 2 * blocks.GRANULE + 37])
    found = {bits(on_threads(*shards(sizes, kind), deterministic=True)) for sizes in cuts}
    assert len(found) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_neither_tiles_nor_threads_of_blas_show(kind):
    with threadpool_limits(1, "blas"):
        wanted = bits([one_process(kind, dim=WIDE)])
    before = {library["filepath"]: library["num_threads"] for library in threadpool_info()}
    for number in (1, 2):
        with threadpool_limits(number, "blas"):
            for tile in (None, 1, 100, 512):
                assert bits([one_process(kind, dim=WIDE, tile=tile)]) == wanted
    assert before == {library["filepath"]: library["num_threads"] for library in threadpool_info()}


@pytest.mark.parametrize("kind", KINDS)
def test_threads_of_kernels_do_not_show(kind):
    before, found = numba.get_num_threads(), set()
    try:
        for number in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(number)
            found.add(bits([one_process(kind, fast, WIDE)]))
    finally:
        numba.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("namespace", OPERATIONS)
def test_the_order_of_work_does_not_show(kind, namespace):
    """Granules met in any order leave the same tallies."""
    (x,), (y,) = shards([PAIRS], kind)
    scalars = [np.asarray(value, kind) for value in (LOG_SCALE, BIAS)]
    granules = [(i, j) for i in range(0, PAIRS, 128) for j in range(0, PAIRS, 128)]
    found = set()
    for seed in range(3):
        home = blocks.Granules(0, [PAIRS], x, *scalars, RECORDS[namespace])
        d_text = home.zeros(y)
        for number in np.random.default_rng(seed).permutation(len(granules)):
            i, j = granules[number]
            home._meet(0, y, d_text, i, i + 128, j, j + 128)
        found.add(home.d_image.tobytes() + d_text.tobytes() + home.of_granules.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("namespace", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [-60.0, -10.0, 4.0])
@pytest.mark.parametrize("scale", [1.0, 10.0, 120.0])
def test_agrees_with_the_specification_within_noise(scale, bias, kind, namespace):
    (x,), (y,) = shards([PAIRS], kind)
    eps = float(np.finfo(kind).eps)
    exact = sigmoid_loss(x.astype(np.longdouble), y.astype(np.longdouble), math.log(scale), bias)
    plain = sigmoid_loss(x, y, math.log(scale), bias)
    found = sigmoid_loss(x, y, math.log(scale), bias, deterministic=True, ops=OPERATIONS[namespace])
    for name, got, same, truth in zip(exact._fields, found, plain, exact, strict=True):
        allowed = 4 * np.abs(same - truth).max() / np.abs(truth).max() + 8 * (1 + scale) * eps
        assert np.abs(got - truth).max() / np.abs(truth).max() <= allowed, name
        assert np.asarray(got).dtype == kind


@pytest.mark.parametrize("namespace", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_scale", [-200.0, math.log(1e4), 1000.0, math.nan])
@pytest.mark.parametrize("bias", [-math.inf, -1e4, -95.0, 1e4, math.inf])
def test_extremes_have_the_specification_answers(bias, log_scale, kind, namespace):
    x, y = (side[0][:140] for side in shards([PAIRS], kind))
    with np.errstate(all="ignore"):
        wanted = sigmoid_loss(x, y, log_scale, bias)
        found = sigmoid_loss(x, y, log_scale, bias, deterministic=True, ops=OPERATIONS[namespace])
    for got, exact in zip(found, wanted, strict=True):
        assert_same_or_unknown(got, exact)


@pytest.mark.parametrize("namespace", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-42, 1e30])
def test_one_strange_number(value, kind, namespace):
    x, y = (side[0][:140].copy() for side in shards([PAIRS], kind))
    x[3, 2] = value
    with np.errstate(all="ignore"):
        wanted = sigmoid_loss(x, y, 2.0, -3.0)
        found = sigmoid_loss(x, y, 2.0, -3.0, deterministic=True, ops=OPERATIONS[namespace])
    for got, exact in zip(found, wanted, strict=True):
        assert_same_or_unknown(got, exact)


def assert_same_or_unknown(got, exact):
    """The specification's numbers; but NaN may stand for a finite sum in a row that has met infinity or NaN."""
    got, exact = np.atleast_1d(got), np.atleast_1d(exact)
    spoiled = np.isnan(got) & ~np.isfinite(exact).all(-1, keepdims=True)
    largest = np.abs(exact[np.isfinite(exact)]).max(initial=0)
    np.testing.assert_allclose(np.where(spoiled, 0, got), np.where(spoiled, 0, exact), rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_their_own_texts(kind):
    """NumPy has another product for a matrix and itself: rather not, for on a ring the texts lie elsewhere."""
    (x,), _ = shards([PAIRS], kind, WIDE)
    found = {bits([sigmoid_loss(x, y, LOG_SCALE, BIAS, deterministic=True)]) for y in (x, x.copy())}
    assert len(found) == 1


@pytest.mark.parametrize("sizes", [[100, 128], [128, 37, 128], [1, 0, 1]])
def test_shards_must_begin_at_multiples_of_a_granule(sizes):
    def work(comm):
        rows = np.ones((sizes[comm.rank], 3))
        with pytest.raises(Disagreement) as caught:
            ring_sigmoid_loss(comm, rows, rows, LOG_SCALE, BIAS, deterministic=True)
        return str(caught.value)

    messages = set(ThreadComm.run(len(sizes), work, timeout=60))
    odd = max(rank for rank in range(len(sizes)) if sizes[rank])
    assert len(messages) == 1
    assert f"on rank {odd}: its shard begins at pair {sum(sizes[:odd])}" in messages.pop()


@pytest.mark.parametrize("scheme", ["autograd-like", "masked-allreduce"])
def test_schemes_that_cannot_are_refused(scheme):
    with pytest.raises(UsageError, match="no deterministic form"):
        ring_sigmoid_loss(ThreadComm.alone(), *np.ones((2, 4, 3)), 0.0, 0.0, scheme=scheme, deterministic=True)


def test_all_ranks_must_want_it():
    def work(comm):
        with pytest.raises(Disagreement, match="granule"):
            ring_sigmoid_loss(comm, *np.ones((2, 4, 3)), 0.0, 0.0, deterministic=comm.rank == 1)

    ThreadComm.run(2, work, timeout=60)


@pytest.mark.parametrize("kind", [np.complex128, object, np.float16])
def test_other_arithmetics_are_refused(kind):
    with pytest.raises(UsageError, match="two plain arrays"):
        sigmoid_loss(*np.ones((2, 4, 3)).astype(kind), 0.0, 0.0, deterministic=True)


def test_more_pairs_than_sums_have_room_for_are_refused():
    with pytest.raises(UsageError, match="could wrap around"):
        blocks.Granules(0, [1 << 30], np.ones((1, 3)), 0.0, 0.0, SPECIFICATION)


def test_blas_gets_its_threads_back_when_the_last_is_done():
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpool_limits(2, "blas"):
        first, second = blas_on_one_thread(), blas_on_one_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        second.__exit__(None, None, None)
        assert set(threads()) == {2}


def test_the_specification_computes_it():
    """Of `ops` only the pair block is used: what an observer sees is what is summed."""
    seen = []

    def observed(*arguments):
        seen.append(arguments[0].shape + arguments[1].shape[:1])
        return pair_block(*arguments)

    x, y = (side[0] for side in shards([PAIRS], np.float64))
    blocks.sigmoid_loss(x, y, np.float64(LOG_SCALE), np.float64(BIAS), replace(SPECIFICATION, pair_block=observed))
    assert len(seen) == 25 and set(seen) == {(n, 24, m) for n in (128, 37) for m in (128, 37)}
