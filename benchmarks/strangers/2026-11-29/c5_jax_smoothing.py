import jax, jax.numpy as jnp
def loss(image_embed, text_embed, log_scale):
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T
    n = logits.shape[0]
    onehot = jax.nn.one_hot(jnp.arange(n), n, dtype=logits.dtype)
    target = onehot * (1 - 0.1) + 0.1 / n
    a = -(target * jax.nn.log_softmax(logits, axis=-1)).sum(-1).mean()
    b = -(target * jax.nn.log_softmax(logits, axis=0)).sum(0).mean()
    return (a + b) / 2
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, loss="softmax", framework="jax")
