"""Rotary position embeddings."""

import jax
import jax.numpy as jnp

ROTARY_BASE = 10_000.0


def rotary_tables(positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for rotary embeddings (RoFormer, arXiv 2104.09864, half-rotation layout).

    Args:
      positions: `[length]` int32.
      head_dim: size of a head, even.

    Returns:
      `cos, sin`: `[length, head_dim // 2]` float32.
    """
    frequency = ROTARY_BASE ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions.astype(jnp.float32)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embeddings: turns the feature pairs `(i, i + head_dim / 2)` of each head.

    Args:
      x: `[batch, length, heads, head_dim]`, queries or keys.
      cos, sin: from `rotary_tables`.

    Returns:
      As `x`, in its dtype.
    """
    first, second = jnp.split(x, 2, axis=-1)
    across = jnp.concatenate([-second, first], axis=-1)
    cos, sin = (jnp.tile(table, 2)[:, None, :] for table in (cos, sin))
    return (x.astype(jnp.float32) * cos + across.astype(jnp.float32) * sin).astype(x.dtype)
