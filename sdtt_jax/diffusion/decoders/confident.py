"""Decoders that reveal first what the network is surest of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdtt_jax.config import one_of, within
from sdtt_jax.diffusion.decoders.base import Pick, entropy
from sdtt_jax.diffusion.decoders.ranking import falling_order
from sdtt_jax.typing import Key, PerToken, Positions

SCORES = ("probability", "margin", "entropy")

# A margin below this share of the largest probability counts as that: its logarithm would be all rounding.
_LEAST_MARGIN = 1e-4


@dataclasses.dataclass(frozen=True)
class Confidence:
    """What the network is surest of comes first (MaskGIT, arXiv 2202.04200; LLaDA, arXiv 2502.09992)."""

    # "probability" of the most probable token, its "margin" over the next one (arXiv 2502.06768), or the
    # negative "entropy" of the position.
    score: str = "probability"
    # Reveal every position that is at least this sure, and at least one of each text, however many calls that
    # takes; for "entropy" the exponential of the score is compared. 0 spreads the positions evenly.
    threshold: float = 0.0
    # Scale of the Gumbel noise added to the score (log for the first two); 0, or less than 0.001, adds none
    # and breaks ties at random. With a threshold, it only decides what comes where none is sure enough.
    order_temperature: float = 0.0

    def __post_init__(self) -> None:
        one_of(self, score=SCORES)
        within("[0, 1]", self, "threshold")
        within("[0, inf)", self, "order_temperature")


@dataclasses.dataclass(frozen=True)
class EntropyBounded:
    """Reveals in the order of entropy, as long as tokens revealed together can depend little on each other.

    The sum of the entropies minus the largest bounds the mutual information of what a call reveals; it is
    kept to at most `bound` nats (arXiv 2505.24857). At least one position is revealed.
    """

    bound: float = 0.1
    # Scale of the Gumbel noise added to the negative entropies; 0, or less than 0.001, adds none and breaks
    # ties at random.
    order_temperature: float = 0.0

    def __post_init__(self) -> None:
        within("[0, inf)", self, "bound", "order_temperature")


def confidence(options: Confidence, log_probs: jax.Array) -> jax.Array:
    """How sure the network is of positions with these log-probabilities `[n, vocab]`: `[n]` float32."""
    if options.score == "entropy":
        return -entropy(log_probs)
    if options.score == "margin":
        if log_probs.shape[-1] == 1:
            return log_probs[:, 0]
        # Not slices of `best`: with them XLA sorts whole rows on a CPU (256 x 50k: 1,800 ms, and not 14).
        best = jax.lax.top_k(log_probs, 2)[0]
        (first, second) = best.max(axis=-1), best.min(axis=-1)
        return first + jnp.log(jnp.maximum(-jnp.expm1(second - first), _LEAST_MARGIN))
    return log_probs.max(axis=-1)


def confident_pick(options: Confidence, key: Key, calls_left: jax.Array) -> Pick:
    """`Decoder.pick`: takes the surest share of positions, or all that are sure enough."""

    def accept(score: PerToken, due: Positions) -> Positions:
        sure = due & sure_enough(options, score)
        count = confident_count(options, due, calls_left)
        rank = jnp.argsort(_order(options, key, score, due), axis=-1).astype(jnp.int32)
        return due & jnp.where(sure.any(axis=-1, keepdims=True), sure, rank < count)

    return Pick(functools.partial(confidence, options), accept)


def block_pick(options: Confidence, key: Key, calls_left: jax.Array) -> Pick:
    """What a call takes of a block: `confident_pick`, but the last call of a block takes all that is left."""
    pick = confident_pick(options, key, calls_left)

    def accept(score: PerToken, due: Positions) -> Positions:
        return jnp.where(calls_left > 1, pick.accept(score, due), due)

    return pick._replace(accept=accept)


def sure_enough(options: Confidence, score: jax.Array) -> jax.Array:
    """Which positions reach the threshold, in the score's shape, bool; none if there is no threshold."""
    return score >= (jnp.log(options.threshold) if options.threshold > 0 else jnp.inf)


def confident_count(options: Confidence, due: Positions, calls_left: jax.Array) -> jax.Array:
    """How many positions of each text a call reveals where none reaches the threshold: `[batch, 1]` int32."""
    number = due.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    return jnp.minimum(number, 1) if options.threshold > 0 else -(-number // calls_left)


def negative_entropy(options: EntropyBounded, log_probs: jax.Array) -> jax.Array:
    """How sure the network is of positions: `[n, vocab]` to `[n]` float32, nats."""
    del options
    return -entropy(log_probs)


def bounded_pick(options: EntropyBounded, key: Key, calls_left: jax.Array) -> Pick:
    """`Decoder.pick`: goes up the entropies, or their order with noise, as far as the bound allows."""
    del calls_left

    def accept(score: PerToken, due: Positions) -> Positions:
        order = _order(options, key, score, due)
        entropies = jnp.take_along_axis(jnp.where(due, -score, 0.0), order, axis=-1)
        largest = jax.lax.cummax(entropies, axis=entropies.ndim - 1)
        fits = jnp.cumsum(entropies, axis=-1) - largest <= options.bound
        return due & jnp.put_along_axis(jnp.zeros_like(due), order, fits, axis=-1, inplace=False)

    return Pick(functools.partial(negative_entropy, options), accept)


def of_margin(options: Confidence | EntropyBounded) -> bool:
    """Whether the score is the logarithm of a margin."""
    return isinstance(options, Confidence) and options.score == "margin"


def _order(
    options: Confidence | EntropyBounded, key: Key, score: PerToken, due: Positions
) -> jax.Array:
    return falling_order(key, score, due, options.order_temperature, margin=of_margin(options))
