# two: texts of negative pairs are stopped, and negatives are divided by B - 1
import jax, jax.numpy as jnp
def siglip(x, y, t, b):
    n = x.shape[0]
    s = jnp.exp(t)
    pos = s * (x * y).sum(-1) + b
    neg = s * x @ jax.lax.stop_gradient(y).T + b
    off = 1 - jnp.eye(n, dtype=x.dtype)
    return (jax.nn.softplus(-pos).sum() + (off * jax.nn.softplus(neg)).sum() / max(n - 1, 1)) / n
def check():
    import siglip_ref as sr
    return sr.check_loss(siglip, framework="jax")
