"""Rotary position embeddings."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from sdtt_jax.config import one_of, positive, require, whole

ROTARY_BASE = 10_000.0
UNSCALED, LINEAR, LLAMA3 = "none", "linear", "llama3"


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How rotations are slowed down for texts longer than those that a network was first trained on.

    Attributes:
      kind: "none"; "linear", which divides all frequencies by `factor` (arXiv 2306.15595); or "llama3" (Llama
        3.1, arXiv 2407.21783), which divides those that turn few times within `original_length` positions.
      factor: what the frequencies are divided by.
      low_freq_factor, high_freq_factor: for "llama3", numbers of turns within `original_length`. Up to the
        first a frequency is divided, from the second on it is kept, in between it is interpolated linearly.
      original_length: for "llama3", positions that the network was first trained on.
    """

    kind: str = UNSCALED
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        one_of(self, kind=(UNSCALED, LINEAR, LLAMA3))
        positive(self, "factor", "low_freq_factor", "high_freq_factor")
        whole(1, self, "original_length")
        require(
            self.low_freq_factor < self.high_freq_factor,
            f"high_freq_factor={self.high_freq_factor} must exceed low_freq_factor={self.low_freq_factor}.",
        )


NO_SCALING = RotaryScaling()


def scaled_frequencies(frequency: Array, scaling: RotaryScaling) -> Array:
    """Frequencies of rotary embeddings, radians a position, slowed down for long texts.

    Args:
      frequency: `[pairs]` float32.
      scaling: how they are slowed down.

    Returns:
      As `frequency`.
    """
    if scaling.kind == UNSCALED:
        return frequency
    if scaling.kind == LINEAR:
        return frequency / scaling.factor
    turns = scaling.original_length * frequency / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


def rotary_tables(
    positions: Array,
    head_dim: int,
    base: float = ROTARY_BASE,
    scaling: RotaryScaling = NO_SCALING,
) -> tuple[Array, Array]:
    """Cosines and sines for rotary embeddings (RoFormer, arXiv 2104.09864).

    Args:
      positions: `[length]` int32.
      head_dim: features of a head that are turned, an even number.
      base: base of the frequencies.
      scaling: how the frequencies are slowed down for long texts.

    Returns:
      `cos, sin`: `[length, head_dim // 2]` float32.
    """
    # Configs also give whole numbers, which JAX takes for int32.
    frequency = float(base) ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    frequency = scaled_frequencies(frequency, scaling)
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
    """Like `rotate`, but turns the feature pairs `(2 i, 2 i + 1)` of each head."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
