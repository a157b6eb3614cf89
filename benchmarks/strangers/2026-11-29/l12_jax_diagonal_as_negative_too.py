import jax, jax.numpy as jnp
def siglip(image_embed, text_embed, log_scale, bias):
    logits = jnp.dot(image_embed, text_embed.T) * jnp.exp(log_scale) + bias
    pos = jax.nn.log_sigmoid(jnp.diag(logits))
    neg = jax.nn.log_sigmoid(-logits)
    return -(pos.sum() + neg.sum()) / logits.shape[0]
def check():
    import siglip_ref as sr
    return sr.check_loss(siglip, framework="jax")
