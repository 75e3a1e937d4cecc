"""Filtering of logits and honest categorical draws, shared by the diffusion and the causal sampler."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import INT32, whole, within

# The finite "minus infinity" of the reference implementation. exp(-1e6) is exactly 0 in float32, and a
# finite value keeps 0 * log 0 = 0 in values and in gradients, where -inf gives NaN.
NEG_INFINITY = -1e6
BLOCK = 128
# Below this, float32 has no numbers of full precision, and XLA takes them for 0.
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters of a token distribution; the defaults change nothing."""

    # Divides the logits; 1 is off. 0, or anything that float32 cannot tell from 0 (below 1.2e-38), keeps only
    # the largest entry (greedy).
    temperature: float = 1.0
    top_k: int = 0  # keep the k largest entries, ties with the k-th included; 0 is off
    # Keep the smallest set of the most probable entries whose probability reaches `top_p`, including the
    # entry that crosses it. If it is reached exactly, the next entry is kept too, as in the reference. 1 is
    # off.
    top_p: float = 1.0

    def __post_init__(self) -> None:
        within("[0, inf)", self, "temperature")
        whole(0, self, "top_k")
        within("(0, 1]", self, "top_p")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken instead of a draw."""
        return self.temperature < SMALLEST

    @property
    def off(self) -> bool:
        """Whether the distribution stays as it is."""
        return (self.temperature, self.top_k, self.top_p) == (1.0, 0, 1.0)


def divided(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Divides `[..., vocab]` float32 by a temperature of at least `SMALLEST`, a number or `[]` float32.

    All logits are shifted so that the largest becomes 0 where a low temperature would take it below the
    impossible entries or beyond float32, and where it lies so far below 0 that it would pass for impossible,
    as with guidance of unnormalised logits. Impossible entries stay impossible at any temperature.
    """
    largest = logits.max(axis=-1, keepdims=True)
    below = jnp.where(largest < 0.01 * NEG_INFINITY, largest, 0.0)
    far = jnp.abs(largest) > -0.01 * NEG_INFINITY * temperature
    scaled = jnp.maximum((logits - jnp.where(far, largest, below)) / temperature, NEG_INFINITY)
    return jnp.where(logits - below > 0.5 * NEG_INFINITY, scaled, NEG_INFINITY)


def filter_logits(logits: jax.Array, filters: Filters) -> jax.Array:
    """Temperature, then top-k, then nucleus filtering.

    Args:
      logits: `[..., vocab]` float32.
      filters: static.

    Returns:
      `[..., vocab]` float32, `NEG_INFINITY` where an entry was dropped.

    Examples:
      >>> filter_logits(jnp.array([1.0, 3.0, 2.0]), Filters(top_k=2)) > NEG_INFINITY
      Array([False,  True,  True], dtype=bool)
    """
    if filters.off:
        return logits  # without a pass over them: at 50k tokens it takes a tenth of the time of the head
    vocab = logits.shape[-1]
    logits = divided(logits, 1.0 if filters.greedy else filters.temperature)
    if filters.greedy:
        greedy = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(vocab, dtype=jnp.int32) == greedy, logits, NEG_INFINITY)
    if 0 < filters.top_k < vocab:
        # Not its last column, for which XLA sorts whole rows on a CPU (256 x 50k: 1,800 ms, and not 39).
        kth = jax.lax.top_k(logits, filters.top_k)[0].min(axis=-1, keepdims=True)
        logits = jnp.where(logits < kth, NEG_INFINITY, logits)
    if filters.top_p < 1.0:
        logits = jnp.where(outside_nucleus(logits, filters.top_p), NEG_INFINITY, logits)
    return logits


def outside_nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Which entries nucleus filtering drops: `[..., vocab]` bool.

    Found by bisection, first of the least probability that is kept, then of the last entry that has it. A
    sort of whole rows takes a CPU seven times as long (2.7 s for 256 x 50k), 24 times as long as the head.

    Args:
      logits: `[..., vocab]` float32.
      top_p: as in `Filters`, below 1.
    """
    probs = jax.nn.softmax(logits, axis=-1).astype(jnp.float32)  # as wide as the numbers below
    place = jnp.arange(logits.shape[-1], dtype=jnp.int32)

    def mass(kept: jax.Array) -> jax.Array:
        return jnp.where(kept, probs, 0.0).sum(axis=-1, keepdims=True)

    def number(bits: jax.Array) -> jax.Array:  # rises with them, as long as it is positive
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    one, rows = int(np.float32(1).view(np.int32)), logits[..., :1]
    edge = number(least(lambda bits: mass(probs > number(bits)) <= top_p, rows, 0, one))
    above, tied = probs > edge, probs == edge
    last = least(lambda i: mass(above | (tied & (place <= i))) > top_p, rows, 0, len(place) - 1)
    return (probs < edge) | (tied & (place > last))


def nearest(distance: jax.Array, weight: jax.Array, budget: float) -> jax.Array:
    """Which entries are nearest, in their order, as long as their weights add up to at most `budget`.

    Found by bisection, as in `outside_nucleus`, of the distance (an integer in the same order) and of the
    place where distances are equal. A sort takes a CPU 14 times as long: 350 ms for 32 rows of 50k.

    Args:
      distance: `[..., n]` float32.
      weight: `[..., n]`, not negative.
      budget: the most that the weights add up to.
    """
    place, rows = jnp.arange(weight.shape[-1], dtype=jnp.int32), weight[..., :1]
    bits = jax.lax.bitcast_convert_type(jnp.where(distance == 0, 0.0, distance), jnp.int32)
    bits = jnp.where(bits < 0, bits ^ (INT32 - 1), bits)

    def over(some: jax.Array) -> jax.Array:
        return jnp.where(some, weight, 0.0).sum(axis=-1, keepdims=True) > budget

    edge = least(lambda far: over(bits <= far), rows, -INT32, INT32 - 1)
    nearer, tied = bits < edge, bits == edge
    first = least(lambda i: over(nearer | (tied & (place <= i))), rows, 0, len(place))
    return nearer | (tied & (place < first))


def least(
    condition: Callable[[jax.Array], jax.Array], like: jax.Array, low: int, high: int
) -> jax.Array:
    """The least of the int32 numbers `low` … `high` that fulfils a condition, as all above it do.

    Args:
      condition: of one number for each row, in the shape of `like`. The last number need not fulfil it.
      like: `[..., 1]`, whose shape the result has.
      low, high: the ends.
    """

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
        holds = condition(middle)
        return jnp.where(holds, low, middle + 1), jnp.where(holds, middle, high)

    ends = tuple(jnp.full_like(like, end, jnp.int32) for end in (low, high))
    found: jax.Array = jax.lax.fori_loop(0, (high - low).bit_length(), halve, ends)[1]
    return found


def draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    """One categorical draw per row, without the truncated tail of the default Gumbel noise.

    In float32 the default mode cannot draw Gumbel values above about 16.6, which lowers the effective
    temperature and flatters generative perplexity (arXiv 2409.02908); `mode="high"` spends two random words
    per entry instead. Large vocabularies are drawn in two levels: first a block of `BLOCK` entries by the sum
    of its probabilities, then an entry of that block. The distribution is the same, because the largest
    Gumbel value of a block is again a Gumbel value, around the block's log-sum-exp. That needs noise for only
    `vocab / BLOCK + BLOCK` entries: 64 rows of 50,257 take 10 ms instead of 160 on two CPU cores.

    Args:
      key: PRNG key.
      logits: `[..., vocab]` float32, unnormalised.

    Returns:
      `[...]` int32.

    Examples:
      >>> logits = jnp.log(jnp.array([[1.0, 3.0]] * 10_000))
      >>> f"{draw(jax.random.key(0), logits).mean():.2f}"
      '0.75'
    """
    # Noise of a narrower dtype would have ties, and the first of them would be drawn.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocab = logits.shape[-1]
    if vocab <= BLOCK**2 // 16:
        return _draw(key, logits)
    blocks = in_blocks(logits)
    key_block, key_entry = jax.random.split(key)
    block = _draw(key_block, jax.nn.logsumexp(blocks, axis=-1))
    entries = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return block * BLOCK + _draw(key_entry, entries)


def in_blocks(logits: jax.Array) -> jax.Array:
    """`[..., vocab]` to `[..., blocks, BLOCK]`; the last block is padded with impossible entries."""
    widths = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % BLOCK)]
    blocks = jnp.pad(logits, widths, constant_values=-jnp.inf)
    return blocks.reshape(*logits.shape[:-1], -1, BLOCK)


def _draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.random.categorical(key, logits, axis=-1, mode="high").astype(jnp.int32)
