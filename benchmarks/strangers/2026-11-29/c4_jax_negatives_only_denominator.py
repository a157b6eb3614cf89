# SimCLR code carried over (DCL by accident): the positive is masked out of the denominator.
import jax.numpy as jnp
def xent(logits):
    n = logits.shape[0]
    masked = logits - 1e9 * jnp.eye(n, dtype=logits.dtype)
    m = masked.max(axis=1, keepdims=True)
    lse = jnp.log(jnp.exp(masked - m).sum(axis=1)) + m[:, 0]
    return (lse - jnp.diag(logits)).mean()
def loss(zi, zt, t):
    logits = jnp.exp(t) * zi @ zt.T
    return 0.5 * (xent(logits) + xent(logits.T))
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, loss="softmax", framework="jax")
