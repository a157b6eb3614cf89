"""check_step on optimisers alone: optax, Torch and NumPy pass, big_vision's own mistakes are named, misuse is told."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
import torch

import siglip_ref as sr
from siglip_ref.model.optim import BigVision, State, adamw_step, cosine, matrices

RULE = sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0)
BIG = BigVision(lr=0.01, decay=1e-3, smallest=3)
DTYPES = (pytest.param("float64", marks=pytest.mark.nightly), "float32")


def kernel_mask(params):
    return {name: name.endswith("/kernel") for name in params}


def with_optax(chain):
    step = jax.jit(chain.update)

    def update(params, grads, state):
        state = chain.init(params) if state is None else state
        updates, state = step(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update


def adamw(**changes):
    settings = dict(learning_rate=RULE.lr, weight_decay=RULE.decay, mask=kernel_mask) | changes
    return with_optax(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(**settings)))


def schedule(k):
    return float(cosine(k, 6, 2))


def big_vision(lr_on_decay=False, debias=False):
    def rate(step, power):
        return jax.numpy.minimum(BIG.beta2_cap, 1 - (step + 1.0) ** -power)

    rms = optax.scale_by_factored_rms(
        decay_rate=BIG.power, min_dim_size_to_factor=BIG.smallest, epsilon=BIG.eps, decay_rate_fn=rate
    )
    decay = optax.add_decayed_weights(BIG.decay, kernel_mask)
    lr = optax.scale(BIG.lr)
    factors = jax.numpy.array([schedule(k) for k in range(6)])
    return with_optax(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            rms,
            optax.ema(BIG.momentum, debias=debias),
            *((decay, lr) if lr_on_decay else (lr, decay)),
            optax.scale_by_schedule(lambda k: factors[k]),
            optax.scale(-1.0),
        )
    )


def with_torch(params, grads, state):
    if state is None:
        kernels = [p for name, p in params.items() if name.endswith("/kernel")]
        others = [p for name, p in params.items() if not name.endswith("/kernel")]
        groups = [{"params": kernels, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        state = torch.optim.AdamW(groups, lr=1e-3)
    for name, p in params.items():
        p.grad = grads[name]
    torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
    state.step()
    return params, state


def with_numpy(params, grads, state):
    return adamw_step(params, grads, state or State(), RULE)


OPTAX_RULE = replace(RULE, clip_eps=0.0)  # optax adds nothing to the length


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_optimisers_pass(dtype):
    big = dict(rule=BIG, schedule=schedule)
    cases = [
        (with_torch, dict(rule=RULE)),
        (with_numpy, dict(rule=RULE)),
        (adamw(), dict(rule=OPTAX_RULE)),
        # optax computes the schedule of the second moment in float32, where JAX counts steps in 32 bits
        *([(big_vision(), big)] if dtype == "float32" else []),
    ]
    for update, rest in cases:
        report = sr.check_step(update, dtype=dtype, **rest)
        assert report.verdict == "PASS", report
        assert max(row.excess for row in report.rows) <= 0.5


@pytest.mark.parametrize(
    ("update", "id"),
    [
        (big_vision(lr_on_decay=True), "weight-decay-times-lr"),
        (big_vision(debias=True), "momentum-debiased"),
    ],
)
def test_mistakes_of_big_vision_are_named(update, id):
    report = sr.check_step(update, BIG, schedule=schedule)
    assert report.findings[0].id == id, report


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (adamw(b2=0.95), "beta2=0.95"),
        (adamw(eps=1e-6), "eps=1e-06"),
        (adamw(mask=lambda params: {name: matrices(name) for name in params}), "decays=matrices"),
        (adamw(weight_decay=0.05), "decay=0.05"),
        (adamw(learning_rate=3e-3), "lr=0.003"),
        (adamw(weight_decay=0.0), "decay=0"),
    ],
    ids=["beta2", "eps", "mask", "decay", "lr", "no decay"],
)
@pytest.mark.sampled(2)
def test_other_settings_are_told(update, words):
    report = sr.check_step(update, OPTAX_RULE)
    assert report.verdict == "OTHER CONVENTION", report
    assert words in report.findings[0].evidence


def test_decay_that_is_not_multiplied_by_lr_is_told():
    rule = replace(OPTAX_RULE, lr=0.05, decay=0.01)
    report = sr.check_step(adamw(learning_rate=0.05, weight_decay=0.2), rule)
    assert report.verdict == "OTHER CONVENTION", report
    assert "decay=0.2, which is not multiplied by lr" in report.findings[0].evidence


def test_the_clip_epsilon_shows_in_float64():
    report = sr.check_step(adamw(), RULE, dtype="float64")
    assert report.verdict == "OTHER CONVENTION"
    assert "clip_eps=0" in report.findings[0].evidence


def test_state_is_saved_and_loaded():
    lost = sr.check_step(with_numpy, RULE, restart=lambda params, state: (params, None))
    assert [finding.id for finding in lost.findings] == ["resume-state-lost"]
    assert sr.check_step(with_numpy, RULE, restart=lambda params, state: (params, state)).passed

    def rounded(params, state):
        return {name: p.astype(np.float16).astype(np.float32) for name, p in params.items()}, state

    report = sr.check_step(with_numpy, RULE, restart=rounded)
    assert "save and load changes the parameters" in report.findings[0].evidence
    assert any("state after save and load" in line for line in sr.check_step(with_numpy, RULE).not_checked)


def test_a_nan_never_passes():
    def update(params, grads, state):
        params, state = with_numpy(params, grads, state)
        return params | {"bias": params["bias"] * np.nan}, state

    report = sr.check_step(update, RULE)
    assert report.verdict == "FAIL"
    assert any("no numbers" in row.note for row in report.details)


def test_what_nobody_knows_stays_unknown():
    def update(params, grads, state):
        moved, state = with_numpy(params, grads, state)
        return {name: p + 1e-4 * np.sin(p) for name, p in moved.items()}, state

    assert [finding.id for finding in sr.check_step(update, RULE).findings] == ["unknown"]


def test_hidden_mistakes_are_listed_as_unseen():
    """Adam hides a constant factor on all gradients where nothing is clipped; bfloat16 hides most, also where float32
    copies keep what it rounds away."""

    def with_copies(params, grads, state):
        copies, state = state or ({name: p.detach().float() for name, p in params.items()}, None)
        copies, state = with_torch(copies, {name: g.float() for name, g in grads.items()}, state)
        return {name: p.bfloat16() for name, p in copies.items()}, (copies, state)

    report = sr.check_step(with_copies, RULE, dtype="bfloat16")
    assert report.verdict == "PASS", report
    assert any("adam-eps-before-bias-correction" in line for line in report.blind)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(step_fn=lambda params: params, rule=RULE), "another number of arguments"),
        (dict(step_fn=3, rule=RULE), "step_fn"),
        (dict(step_fn=with_numpy, rule=dict(lr=1e-3)), "an AdamW or a BigVision"),
        (dict(step_fn=with_numpy, rule=RULE, accumulate=2), "accumulate"),
        (dict(step_fn=with_numpy, rule=RULE, schedule=[0, 1]), "function of the step"),
        (dict(step_fn=with_numpy, rule=RULE, dtype="int8"), "dtype"),
        (dict(step_fn=lambda images, tokens: None, rule=RULE, model=torch.nn.Linear(2, 2)), "Adapter"),
        (dict(step_fn=lambda params, grads, state: params, rule=RULE, framework="numpy"), "params, state"),
        (dict(step_fn=lambda params, grads, state: ({}, state), rule=RULE, framework="numpy"), "same names and shapes"),
    ],
)
def test_misuse_is_told(arguments, words):
    with pytest.raises(sr.UsageError, match=words):
        sr.check_step(**arguments)
