"""The ring against one process: every scheme, every world size, unequal and empty shards."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ring_cases import BIAS, LOG_SCALE, assert_same, batch, errors, on_threads, one_process

from mpi.agree import Disagreement
from mpi.comm import RankFailed, ThreadComm
from mpi.loss import ring_sigmoid_loss
from mpi.ring import ring
from mpi.schemes import SCHEMES
from mpi.softmax import ring_softmax_loss
from mpi.wrappers import Polled
from siglip_ref.ops import softmax_loss

SIZES = {
    "equal": lambda world: [3] * world,
    "unequal": lambda world: [(5 * rank + 2) % 7 for rank in range(world)],
    "some empty": lambda world: [4 if rank % 2 == world % 2 else 0 for rank in range(world)] if world > 1 else [4],
}


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("world", range(1, 9))
def test_equals_one_process(world, scheme, shape):
    images, texts = batch(SIZES[shape](world), seed=world)
    whole = one_process(images, texts)
    assert_same(on_threads(images, texts, scheme=scheme, tile=2), whole)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    dim=st.integers(1, 9),
    scheme=st.sampled_from(sorted(SCHEMES)),
    tile=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_one_process_for_any_shape(sizes, dim, scheme, tile, seed):
    images, texts = batch(sizes, dim, seed)
    parts, whole = on_threads(images, texts, scheme=scheme, tile=tile), one_process(images, texts)
    found = errors(parts, whole)
    # the sum over pairs in d_log_scale may cancel, so it is judged against a bound of its terms
    found["d_log_scale"] *= abs(float(whole.d_log_scale)) / max(abs(float(whole.d_log_scale)), abs(float(whole.loss)))
    found["d_bias"] *= abs(float(whole.d_bias)) / max(abs(float(whole.d_bias)), abs(float(whole.loss)))
    for name, error in found.items():
        assert error <= 1e-13, (name, error)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_float32_stays_float32(scheme):
    images, texts = batch([3, 0, 4], dtype=np.float32)
    parts = on_threads(images, texts, scheme=scheme)
    assert {np.asarray(value).dtype for part in parts for value in part} == {np.dtype(np.float32)}
    assert_same(parts, one_process([x.astype(float) for x in images], [y.astype(float) for y in texts]), 1e-6)


def test_the_inputs_stay_as_they_are_also_when_not_contiguous():
    images, texts = batch([4, 5, 3])
    whole = one_process(images, texts)
    turned = [np.asfortranarray(y) for y in texts]
    for scheme in SCHEMES:
        assert_same(on_threads(images, turned, scheme=scheme), whole)
    assert all((a == b).all() for a, b in zip(turned, texts, strict=True))


def test_rank_r_holds_chunk_r_plus_s_at_hop_s():
    def work(comm):
        seen = []
        answer = ring(
            comm,
            np.array([[float(comm.rank)]]),
            [1] * 5,
            lambda owner, chunk: seen.append((owner, chunk[0, 0])) or chunk * 10 + 1,
        )
        return seen, answer.item()

    for rank, (seen, answer) in enumerate(ThreadComm.run(5, work, timeout=60)):
        assert seen == [((rank + hop) % 5, (rank + hop) % 5) for hop in range(5)]
        assert answer == 5 * (10 * rank + 1)


@pytest.mark.parametrize("sizes", [[5], [2, 3], [4, 0, 3], [1, 2, 3, 4, 5]])
def test_softmax_ring_equals_one_process(sizes):
    images, texts = batch(sizes)
    parts = ThreadComm.run(
        len(sizes),
        lambda comm: ring_softmax_loss(comm, images[comm.rank], texts[comm.rank], LOG_SCALE, sizes),
        timeout=60,
    )
    whole = softmax_loss(np.concatenate(images), np.concatenate(texts), np.asarray(LOG_SCALE))
    d_image, d_text = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    for a, b in zip((parts[0].loss, d_image, d_text, parts[-1].d_log_scale), whole, strict=True):
        assert np.abs(a - b).max() / np.abs(b).max() <= 1e-13


def _shard(rank, **changes):
    images, texts = batch([3, 3, 3])
    return {"image_embed": images[rank], "text_embed": texts[rank], "log_scale": LOG_SCALE, "bias": BIAS} | changes


NAN = np.full((3, 6), np.nan)
DISAGREEMENTS = {
    "one axis": (dict(image_embed=np.zeros(6)), "not two arrays of shape"),
    "width": (dict(image_embed=np.ones((3, 7)), text_embed=np.ones((3, 7))), "embedding width 7"),
    "pairs": (dict(text_embed=np.ones((2, 6))), "3 images and 2 texts"),
    "dtype": (dict(image_embed=np.ones((3, 6), np.float32), text_embed=np.ones((3, 6), np.float32)), "dtype float32"),
    "integers": (dict(image_embed=np.ones((3, 6), int)), "not float32 or float64"),
    "NaN in images": (dict(image_embed=NAN), "image_embed holds NaN"),
    "NaN in texts": (dict(text_embed=NAN), "text_embed holds NaN"),
    "log_scale": (dict(log_scale=LOG_SCALE + 1e-15), "log_scale 2.302585092994047"),
    "bias": (dict(bias=-10.0), "bias -10.0"),
    "two biases": (dict(bias=np.zeros(2)), "not one finite number"),
    "scheme": (dict(scheme="allgather"), "scheme allgath"),
    "unknown scheme": (dict(scheme="magic"), "the scheme is not known"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
@pytest.mark.parametrize("odd", [0, 1, 2])
def test_what_does_not_fit_is_refused_on_every_rank_alike(case, odd):
    changes, words = DISAGREEMENTS[case]

    def work(comm):
        with pytest.raises(Disagreement) as caught:
            ring_sigmoid_loss(comm, **_shard(comm.rank, **(changes if comm.rank == odd else {})))
        return str(caught.value)

    messages = ThreadComm.run(3, work, timeout=60)
    assert len(set(messages)) == 1
    assert f"on rank {odd}: " in messages[0] and words in messages[0], messages[0]


def test_versions_must_agree():
    import mpi.agree

    table = np.zeros((3, len(mpi.agree.FIELDS)), np.int64)
    table[:, 0] = [mpi.agree._word(v) for v in ("0.1.0", "0.2.0", "0.1.0")]
    with pytest.raises(Disagreement, match=r"on rank 1: siglip-ref version 0\.2\.0"):
        mpi.agree.judge(table)


def test_an_empty_global_batch_is_refused():
    images, texts = batch([0, 0])
    with pytest.raises(RankFailed, match="at least one pair"):
        on_threads(images, texts)


def test_a_failing_thread_ends_the_others():
    images, texts = batch([2, 2, 2])

    def work(comm):
        if comm.rank == 1:
            raise OSError("the disk is full")
        ring_sigmoid_loss(comm, images[comm.rank], texts[comm.rank], LOG_SCALE, BIAS)

    with pytest.raises(RankFailed, match="rank 1: OSError: the disk is full"):
        ThreadComm.run(3, work, timeout=60)


def test_threads_that_wait_for_ever_end_at_the_timeout():
    def work(comm):
        if comm.rank == 0:
            comm.Irecv(np.empty(1), 1, 7).Wait()

    with pytest.raises(TimeoutError, match="ranks \\[0\\]"):
        ThreadComm.run(2, work, timeout=0.2)


@pytest.mark.parametrize("seconds, at_least, at_most", [(0.016, 70, 200), (3.0, 2900, 4000)])
def test_who_waits_asks_often_at_first_and_seldom_later(seconds, at_least, at_most, monkeypatch):
    """Over TCP a message moves on only while the library is asked; who waits for long is not to take a core."""
    clock, asked = [0.0], 0
    monkeypatch.setattr("mpi.wrappers.time.sleep", lambda pause: clock.__setitem__(0, clock[0] + pause))
    monkeypatch.setattr("mpi.wrappers.time.monotonic", lambda: clock[0])

    def done():
        nonlocal asked
        asked += 1
        return clock[0] >= seconds

    assert Polled(done).Wait() and at_least <= asked <= at_most
