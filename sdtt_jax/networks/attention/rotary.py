"""Rotary position embeddings."""

import jax.numpy as jnp
from jax import Array

ROTARY_BASE = 10_000.0


def rotary_tables(
    positions: Array, head_dim: int, base: float = ROTARY_BASE
) -> tuple[Array, Array]:
    """Cosines and sines for rotary embeddings (RoFormer, arXiv 2104.09864).

    Args:
      positions: `[length]` int32.
      head_dim: features of a head that are turned, an even number.
      base: of the frequencies.

    Returns:
      `cos, sin`: `[length, head_dim // 2]` float32.
    """
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions.astype(jnp.float32)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
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


def rotate_neighbours(x: Array, cos: Array, sin: Array) -> Array:
    """`rotate` that turns the feature pairs `(2 i, 2 i + 1)` of each head."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
