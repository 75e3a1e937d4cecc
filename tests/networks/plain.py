"""Plain attention, the oracle of the forms of `attend`."""

import jax.numpy as jnp

from sdtt_jax.networks.attention import causal_mask, plain_attention


def attend_plainly(query, key, value, causal, segments=None):
    """The oracle in the layout of `attend`; JAX differentiates it."""
    mask = causal_mask(query.shape[1]) if causal else None
    if segments is not None:
        same = (segments[:, None] == segments[:, :, None])[:, None]
        mask = same if mask is None else same & mask
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(plain_attention(*heads_first, mask), 1, 2)
