# in-process "ring": texts are rolled under the images; the last roll is forgotten
import jax, jax.numpy as jnp
def siglip(x, y, t, b):
    n = x.shape[0]
    total = jax.nn.softplus(-(jnp.exp(t) * (x * y).sum(-1) + b)).sum()
    for hop in range(1, n - 1):
        z = jnp.exp(t) * (x * jnp.roll(y, hop, axis=0)).sum(-1) + b
        total = total + jax.nn.softplus(z).sum()
    return total / n
def scanned(x, y, t, b):
    n = x.shape[0]
    total = jax.nn.softplus(-(jnp.exp(t) * (x * y).sum(-1) + b)).sum()
    def body(carry, _):
        y, acc = carry
        y = jnp.roll(y, 1, axis=0)
        return (y, acc + jax.nn.softplus(jnp.exp(t) * (x * y).sum(-1) + b).sum()), None
    (_, total), _ = jax.lax.scan(body, (y, total), None, length=max(n - 2, 0))
    return total / n
def check():
    import siglip_ref as sr
    return sr.check_loss(scanned, framework="jax")
