"""Positions in the order of a score, with noise or with ties broken at random; rounding decides nothing."""

import jax
import jax.numpy as jnp

from sdtt_jax.typing import Key, PerToken, Positions

# Without noise, positions whose scores only the machine's rounding may tell apart are ties, which are broken
# at random: those that no gap wider than `_GAP` divides, less than `_WIDE` below the largest of them. Where
# everything is masked, rotary attention predicts the same at every position; with the evening's teacher,
# rounding scattered the first tokens on a CPU and put them side by side on a GPU, with perplexities of 34 and
# 75 in four calls.
_GAP, _WIDE = 2e-5, 1e-4
# Noise of a smaller scale would not hide the rounding of the scores to which it is added.
_LEAST_NOISE = 1e-3


def noise_scale(temperature: float) -> float:
    """The scale of the noise in an order; 0 where ties are broken at random instead."""
    return temperature if temperature >= _LEAST_NOISE else 0.0


def without_rounding(score: PerToken, due: Positions, *, margin: bool) -> PerToken:
    """What orders positions without noise, the same number for all that tie: `[..., length]` float32.

    Args:
      score: of each position, `[..., length]` float32.
      due: the positions that are ordered; the others have a number below all of theirs.
      margin: whether the score is the logarithm of a margin. Its error is that of two probabilities and grows
        as the margin falls, so that the margins themselves are compared.
    """
    known = jnp.where(due, jnp.exp(score) if margin else score, -1e30)
    order = jnp.argsort(-known, axis=-1)
    falling = jnp.take_along_axis(known, order, axis=-1)
    gaps = -jnp.diff(falling, axis=-1, prepend=jnp.float32(jnp.inf))
    largest = jax.lax.cummin(jnp.where(gaps > _GAP, falling, jnp.inf), axis=falling.ndim - 1)
    level = largest - _WIDE * jnp.floor((largest - falling) / _WIDE)
    return jnp.put_along_axis(known, order, level, axis=-1, inplace=False)


def falling_order(
    key: Key, score: PerToken, due: Positions, temperature: float, *, margin: bool
) -> jax.Array:
    """The positions in falling order of score, those not due at the end: `[batch, length]` int32.

    Args:
      key: PRNG key.
      score: `[batch, length]` float32.
      due: the positions that are ordered.
      temperature: scale of the Gumbel noise that is added.
      margin: as in `without_rounding`.
    """
    scale = noise_scale(temperature)
    if scale == 0:
        ties = jax.random.uniform(key, score.shape, jnp.float32)
        return jnp.lexsort((ties, -without_rounding(score, due, margin=margin)), axis=-1)
    noise = jax.random.gumbel(key, score.shape, jnp.float32, mode="high")
    # A scale above 1 divides the scores instead; noise of the largest scales would be infinite.
    noisy = score / max(scale, 1.0) + min(scale, 1.0) * noise
    return jnp.argsort(jnp.where(due, -noisy, jnp.inf), axis=-1)
