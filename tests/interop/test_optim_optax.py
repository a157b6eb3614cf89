"""big_vision's chain against one built from optax's own pieces, as big_vision/optax.py builds it, in float64."""

import jax
import numpy as np
import optax

from siglip_ref.model.optim import BigVision, State, big_vision_step, cosine, kernels

RULE = BigVision(lr=0.01, decay=0.05, smallest=3, max_norm=1.0, beta2_cap=0.5)  # a cap reached within three steps
TOTAL, WARMUP = 6, 2


def theirs() -> optax.GradientTransformation:
    def rate(step, power):
        return jax.numpy.minimum(RULE.beta2_cap, 1 - (step + 1.0) ** -power)

    def kernel_mask(params):
        return {name: kernels(name) for name in params}

    second = optax.scale_by_factored_rms(
        decay_rate=RULE.power, min_dim_size_to_factor=RULE.smallest, epsilon=RULE.eps, decay_rate_fn=rate
    )
    return optax.chain(
        optax.clip_by_global_norm(RULE.max_norm),
        second,
        optax.ema(RULE.momentum, debias=False),
        optax.scale(RULE.lr),
        optax.add_decayed_weights(RULE.decay, kernel_mask),
        optax.scale_by_schedule(lambda k: jax.numpy.array([float(cosine(i, TOTAL, WARMUP)) for i in range(TOTAL)])[k]),
        optax.scale(-1.0),
    )


def test_big_vision_agrees_with_optax() -> None:
    rng = np.random.default_rng(2)
    start = {"a/kernel": rng.standard_normal((5, 3, 4)), "b/kernel": rng.standard_normal((2, 6)), "c": np.ones(7)}
    steps = [{name: size * rng.standard_normal(p.shape) for name, p in start.items()} for size in (0.01, 3, 0.1, 1)]
    with jax.enable_x64(True):
        chain = theirs()
        params = {name: jax.numpy.asarray(p) for name, p in start.items()}
        state = chain.init(params)
        ours, our_state = start, State()
        for k, grads in enumerate(steps):
            updates, state = chain.update({n: jax.numpy.asarray(g) for n, g in grads.items()}, state, params)
            params = optax.apply_updates(params, updates)
            ours, our_state = big_vision_step(ours, grads, our_state, RULE, cosine(k, TOTAL, WARMUP))
            for name in start:
                # optax computes the schedule of the second moment in float32 where steps are counted in float32
                np.testing.assert_allclose(ours[name], params[name], rtol=1e-9)
