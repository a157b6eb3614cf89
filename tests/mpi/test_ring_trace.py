"""What each rank sends, counted; what each rank did, traced."""

import json
import time
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from ring_cases import BIAS, LOG_SCALE, assert_same, batch, one_process

from mpi.comm import RankFailed, ThreadComm
from mpi.loss import ring_sigmoid_loss
from mpi.observe import Observed
from mpi.schemes import SCHEMES
from mpi.trace import SCHEMA, Trace, as_json, as_perfetto, collect, faults
from mpi.wrappers import Counted, Throttled
from siglip_ref import ops
from siglip_ref.model.specification import SPECIFICATION


def traced(sizes, scheme, tile=2):
    images, texts = batch(sizes)

    def work(comm):
        trace, counted = Trace(), Counted(comm)
        watched = Observed(counted, trace)
        result = ring_sigmoid_loss(
            watched,
            images[comm.rank],
            texts[comm.rank],
            LOG_SCALE,
            BIAS,
            scheme=scheme,
            tile=tile,
            ops=watched.ops(ops),
        )
        return collect(comm, trace.events), counted, result

    return ThreadComm.run(len(sizes), work, timeout=60)


@pytest.mark.parametrize("sizes", [[3], [3, 2], [2, 5, 3], [2, 0, 4, 3, 1]])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_pair_met_once_and_every_gradient_came_home(scheme, sizes):
    ranks = traced(sizes, scheme)
    events, _, result = ranks[0]
    assert faults(events, sizes) == []
    for rank, (_, counted, _) in enumerate(ranks):
        sent = [e for e in events if e.rank == rank and e.kind == "send"]
        assert (len(sent), sum(e.bytes for e in sent)) == (counted.messages, counted.bytes)
    block_sum = sum(e.loss for e in events if e.kind == "block")
    assert abs(block_sum / sum(sizes) - result.loss) <= 1e-13 * result.loss


def test_the_checks_see_what_they_are_for():
    sizes = [2, 3, 2]
    events = traced(sizes, "blocking")[0][0]
    block = next(e for e in events if e.kind == "block")
    recv = next(e for e in events if e.kind == "recv" and e.what == "gradient" and e.chunk == e.rank)
    assert any("block" in fault for fault in faults([e for e in events if e is not block], sizes))
    assert any("block" in fault for fault in faults([*events, block], sizes))
    without = faults([e for e in events if e is not recv], sizes)
    assert any("do not agree" in fault for fault in without) and any("never came home" in fault for fault in without)


def test_json_and_perfetto():
    sizes = [2, 3, 2]
    events, _, result = traced(sizes, "overlapped")[0]
    document = as_json(events, scheme="overlapped", dtype="float64", sizes=sizes, width=6, loss=float(result.loss))
    document = json.loads(json.dumps(document, allow_nan=False))
    jsonschema.validate(document, SCHEMA)
    document["events"][0][1] = "dance"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)
    page = json.loads(json.dumps(as_perfetto(events), allow_nan=False))["traceEvents"]
    starts, ends = ([e["id"] for e in page if e["ph"] == ph] for ph in "sf")
    assert sorted(starts) == sorted(ends) and len(set(starts)) == len(starts) == 3 * 2 * 2
    assert np.isfinite([e["ts"] for e in page if "ts" in e]).all()


def test_a_block_that_is_nan_stops_its_rank():
    def block(x, y, log_scale, bias, match):
        result = ops.pair_block(x, y, log_scale, bias, match)
        return (result[0] * np.nan, *result[1:]) if not match.any() else result

    images, texts = batch([2, 2])
    broken = replace(SPECIFICATION, pair_block=block)

    def work(comm):
        watched = Observed(comm, Trace())
        ring_sigmoid_loss(watched, images[comm.rank], texts[comm.rank], LOG_SCALE, BIAS, ops=watched.ops(broken))

    with pytest.raises(RankFailed, match="NotANumber"):
        ThreadComm.run(2, work, timeout=60)


@pytest.mark.parametrize("scheme", ["blocking", "overlapped", "bidirectional", "allgather"])
def test_a_throttled_link_changes_no_result_and_is_never_faster_than_it_says(scheme):
    images, texts = batch([2, 3, 2])

    def work(comm):
        slow = Throttled(comm, latency=0.01, bandwidth=1e4)
        start = time.monotonic()
        result = ring_sigmoid_loss(slow, images[comm.rank], texts[comm.rank], LOG_SCALE, BIAS, scheme=scheme)
        return result, time.monotonic() - start

    ranks = ThreadComm.run(3, work, timeout=60)
    assert_same([result for result, _ in ranks], one_process(images, texts))
    received = 4 if scheme != "bidirectional" else 2 * 2  # messages from one neighbour follow one another
    assert min(seconds for _, seconds in ranks) >= received * 0.01 * (0.5 if scheme == "allgather" else 1)
