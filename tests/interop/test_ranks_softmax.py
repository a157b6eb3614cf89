"""CLIP's softmax loss over ranks: open_clip's own, JAX's, and NumPy's that lets its texts travel twice."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siglip_ref as sr
from mpi.comm import ThreadComm


def clip_loss(local_loss, with_grad):
    """open_clip's ClipLoss; its file imports only torch, so it is loaded without the package around it."""

    def loss(image, text, scale, rank, world_size):
        folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
        spec = importlib.util.spec_from_file_location("open_clip_loss", f"{folder}/loss.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = module.ClipLoss(local_loss=local_loss, gather_with_grad=with_grad, rank=rank, world_size=world_size)
        return made(image, text, scale)

    return loss


def in_jax(image, text, log_scale, *, axis_name, columns=True):
    """Each rank its rows and its columns, of all."""
    every_image, every_text = (jax.lax.all_gather(rows, axis_name, tiled=True) for rows in (image, text))
    own = jnp.arange(len(image)) + len(image) * jax.lax.axis_index(axis_name)
    ways = [(image, every_text), (text, every_image)][: 1 + columns]
    logits = [jnp.exp(log_scale) * rows @ others.T for rows, others in ways]
    parts = [jax.nn.log_softmax(one)[jnp.arange(len(image)), own] for one in logits]
    return -sum(part.mean() for part in parts) / len(parts)


def rows_alone(image, text, log_scale, *, axis_name):
    return in_jax(image, text, log_scale, axis_name=axis_name, columns=False)


def home_again(comm, held, work):
    """`held` once around the ring: every rank's work on it, and back at its owner."""
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    for hop in range(comm.size):
        work(held, hop == 0)
        held, sent = np.empty_like(held), held
        comm.Sendrecv(sent, left, 0, held, right, 0)
    return held


def two_trips(image, text, log_scale, comm, forget_columns=False):
    """Texts travel once for the sums of rows and columns, and once more for the gradients, which need these sums."""
    scale, pairs, width = np.exp(log_scale), len(image) * comm.size, text.shape[1]
    of_rows, d_image, d_scale = np.full(len(image), -np.inf), np.zeros_like(image), np.zeros(2)

    def add(held, own):
        nonlocal of_rows
        logits = scale * image @ held[:, :width].T
        of_rows = np.logaddexp(of_rows, np.logaddexp.reduce(logits, 1))
        held[:, width] = np.logaddexp(held[:, width], np.logaddexp.reduce(logits, 0))

    first = home_again(comm, np.hstack([text, np.full((len(text), 1), -np.inf)]), add)
    of_columns = first[:, width]

    def spread(held, own):
        nonlocal d_image
        logits = scale * image @ held[:, :width].T
        slope = np.exp(logits - of_rows[:, None]) + np.exp(logits - held[:, width])
        slope = (slope - 2 * own * np.eye(*logits.shape)) / (2 * pairs)
        d_image = d_image + scale * slope @ held[:, :width]
        held[:, width + 1 :] += scale * slope.T @ image
        d_scale[1] += (slope * logits).sum()

    second = np.hstack([text, of_columns[:, None] - (forget_columns and np.log(2)), np.zeros_like(text)])
    d_text = home_again(comm, second, spread)[:, width + 1 :]
    own = scale * (image * text).sum(1)
    d_scale[0] = ((of_rows + of_columns) / 2 - own).sum() / pairs
    together = np.empty(2)
    comm.Allreduce(d_scale, together)
    return together[0], d_image, d_text, together[1]


def judged(fn, framework, **how):
    return sr.check_ranks(fn, 3, framework, loss="softmax", dtype="float64", **how)


@pytest.mark.parametrize("local_loss", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_open_clip_passes(local_loss):
    """Each rank's own rows and columns, or the whole loss on every rank."""
    report = judged(clip_loss(local_loss, True), "torch", scale="linear", value="local" if local_loss else "global")
    assert report.verdict == "PASS", report
    assert "d bias: softmax does not see it" in report.not_checked


@pytest.mark.nightly
@pytest.mark.parametrize("local_loss", [True, False])
def test_open_clip_without_the_gathers_gradient_is_wrong(local_loss):
    report = judged(clip_loss(local_loss, False), "torch", scale="linear", value="local" if local_loss else "global")
    assert report.verdict == "FAIL", report


def test_jax_passes():
    report = judged(in_jax, "jax")
    assert report.verdict == "PASS", report


@pytest.mark.nightly
def test_half_of_it_is_named_in_jax():
    assert judged(rows_alone, "jax").findings[0].id == "softmax-one-direction"


def test_texts_that_travel_twice_pass_and_a_wrong_sum_fails():
    how = dict(ranks=ThreadComm.run, reduce="none", value="global")
    assert judged(two_trips, "numpy", **how).verdict == "PASS"
    report = judged(partial(two_trips, forget_columns=True), "numpy", **how)
    assert report.verdict == "FAIL"
    assert {row.name for row in report.rows if row.verdict == "FAIL"} >= {"image_embed", "text_embed"}
    assert not report.blocks


def test_a_loss_without_a_bias_is_refused_with_the_argument_that_it_needs():
    with pytest.raises(sr.UsageError, match='loss="softmax"'):
        sr.check_ranks(in_jax, 3, "jax")
