"""Which network call reveals which position, as functions of uniform random numbers.

Nothing here depends on what the network predicts.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import INT32, require
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.ops.categorical import SMALLEST
from sdtt_jax.typing import PerToken, Positions

# The share of the tokens that a grid of times may leave masked at its end: log-linear leaves 1e-5.
LEFT = 2e-5


def still_masked(schedule: Schedule, times: jax.Array) -> jax.Array:
    """Chance that a position masked at `times[0]` still is at each of `times: [n + 1]`: 1, then falling.

    0 at the last of them if the schedule masks more than `LEFT` there: the last step goes to time 0 and
    reveals it by draws, as in `reverse.unmask_prob`. What others leave, a greedy call fills.
    """
    chance = schedule.move_chance(times)
    still = chance / chance[0]
    return still.at[-1].set(jnp.where(still[-1] > LEFT, 0.0, still[-1]))


def grid_calls(share: PerToken, still: jax.Array) -> jax.Array:
    """The step of a time grid that reveals a position: i where `still[i + 1] <= share < still[i]`.

    Args:
      share: `[batch, length]` float32, uniform in [0, 1).
      still: `[n + 1]` float32 from `still_masked`.

    Returns:
      `[batch, length]` int32 in 0 … n; n where every step leaves the position masked.
    """
    later = jnp.searchsorted(-still, -share, side="left")
    return later.astype(jnp.int32) - 1


def even_calls(share: PerToken, masked: Positions, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Deals the masked positions out evenly to `num_steps` calls, in the falling order of `share`.

    Args:
      share: `[batch, length]` float32, uniform in [0, 1).
      masked: `[batch, length]` bool.
      num_steps: calls.

    Returns:
      call: `[batch, length]` int32, `num_steps` at positions that are not masked.
      first: `[batch, num_steps]` float32, the largest share among the positions of this call and the later
        ones: that of its first position, or where it reveals none, of the next that is revealed (0: none).

    Raises:
      ConfigError: the product of the text's length and the number of calls would overflow int32.
    """
    length = share.shape[-1]
    _check_product(length, min(num_steps, length), f"{num_steps} calls")
    place, count = rank(share, masked), _number_of(masked)
    # place * num_steps // count, whose product would overflow int32 at 4,096 positions and 600,000 calls.
    call = place * (num_steps // count) + place * (num_steps % count) // count
    return _with_first(share, masked, call, num_steps)


def dealt_calls(
    share: PerToken, masked: Positions, counts: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Like `even_calls`, but call i reveals `counts[i]` positions.

    Where fewer positions are masked than the counts add up to, they are dealt out in the same proportions.

    Args:
      share: `[batch, length]` float32, uniform in [0, 1).
      masked: `[batch, length]` bool.
      counts: positions that each call reveals; they add up to the length of a text.

    Raises:
      ConfigError: the product of the text's length and the sum of the counts would overflow int32.
    """
    _check_product(share.shape[-1], sum(counts), f"counts that add up to {sum(counts)}")
    place, count = rank(share, masked), _number_of(masked)
    ends = jnp.asarray(np.cumsum(counts), jnp.int32)
    # Place `place` of `count` corresponds to place `place * ends[-1] / count` of the whole text.
    call = (place[..., None] * ends[-1] >= ends * count[..., None]).sum(axis=-1)
    return _with_first(share, masked, call, len(counts))


def calls_of_share(share: float, num_steps: int) -> int:
    """The number of calls nearest to a share of them, a half rounded up (Python's `round(0.5)` is 0)."""
    return math.floor(share * num_steps + 0.5 + 1e-9)


def ranks(values: jax.Array) -> jax.Array:
    """The rank of each entry along the last axis, 0 for the smallest; ties keep their order: int32."""
    return jnp.argsort(jnp.argsort(values, axis=-1), axis=-1).astype(jnp.int32)


def rank(score: PerToken, due: Positions) -> jax.Array:
    """Place of each position in the falling order of score; ties in the order of positions.

    Args:
      score: `[batch, length]` float32, finite.
      due: `[batch, length]` bool, positions to rank; all others come after them.
    """
    return ranks(jnp.where(due, -score, jnp.inf))


def _number_of(masked: Positions) -> jax.Array:
    """How many positions of each text are masked, at least 1: `[batch, 1]` int32."""
    return jnp.maximum(masked.sum(axis=-1, keepdims=True, dtype=jnp.int32), 1)


def _check_product(length: int, other: int, what: str) -> None:
    require(
        length * other < INT32,
        f"a text of {length} tokens cannot be dealt out to {what}: their product {length * other} is beyond "
        f"{INT32 - 1}, the most that int32 holds.",
    )


def _with_first(
    share: PerToken, masked: Positions, call: jax.Array, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    share = jnp.where(masked, share, -1.0)
    call = jnp.where(masked, call, num_steps).astype(jnp.int32)
    first = jnp.zeros((len(share), num_steps), jnp.float32)
    rows = jnp.arange(len(share))[:, None]
    first = first.at[rows, call].max(share, mode="drop")
    return call, jax.lax.cummax(first, axis=1, reverse=True)


def cooled(num_steps: int, temperature: float, cooling: float) -> np.ndarray:
    """Temperatures of the steps, falling linearly, and 1 after the last step: `[num_steps + 1]` float32.

    From `(1 + cooling) temperature` to `(1 - cooling) temperature`; a single step has `temperature` itself.
    """
    # With NumPy, because outside of `jit` JAX would compile each of these operations at the first generation.
    fall = np.linspace(1, -1, num_steps) if num_steps > 1 else np.zeros(1)
    # Not lower or higher than float32 has numbers of full precision.
    falling = np.clip(temperature * (1 + cooling * fall), SMALLEST, np.finfo(np.float32).max)
    return np.append(falling, 1).astype(np.float32)
