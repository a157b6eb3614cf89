import jax, jax.numpy as jnp
@jax.custom_vjp
def loss(x, y, t, b):
    return fwd(x, y, t, b)[0]
def fwd(x, y, t, b):
    n, s = x.shape[0], jnp.exp(t)
    def body(carry, i):
        total, dx, dy, dt, db = carry
        sim = y @ x[i]
        sign = jnp.where(jnp.arange(n) == i, 1, -1).astype(x.dtype)
        u = -sign * (s * sim + b)
        g = -sign * jax.nn.sigmoid(u) / n
        return (total + jax.nn.softplus(u).mean(), dx.at[i].set(s * g @ y), dy + s * g[:, None] * x[i], dt + s * (g * sim).sum(), db + g.sum()), None
    zero = jnp.zeros((), x.dtype)
    out, _ = jax.lax.scan(body, (zero, jnp.zeros_like(x), jnp.zeros_like(y), zero, zero), jnp.arange(n))
    return out[0], out[1:]
def bwd(saved, g):
    return tuple(g * v for v in saved)
loss.defvjp(fwd, bwd)
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, framework="jax")
