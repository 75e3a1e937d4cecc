"""How a network call takes a token for each of some positions: drawn, settled by noise, or the likeliest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.ops.categorical import Filters, draw, filter_logits
from sdtt_jax.ops.noise import Noise, noisy_argmax
from sdtt_jax.typing import Key, Logits

# (key, logits [n, mask_id], places [n], noise of [n]) -> tokens [n] int32; a place is sequence * length +
# position.
Choice = Callable[[Any, jax.Array, jax.Array, Any], jax.Array]


def choice(filters: Filters, noise: Noise | None, *, sees_noise: bool) -> Choice:
    """How the steps of a generation take their tokens.

    Args:
      filters: of the token distribution.
      noise: that the generation is a function of; None draws anew at each call.
      sees_noise: whether the network is shown the noise, so that what it says is drawn from as it is.
    """
    if filters.greedy:
        return most_probable
    if noise is None or sees_noise:
        return drawn(filters)

    def choose(key: Key, logits: Logits, places: jax.Array, noise: Noise) -> jax.Array:
        del key, places
        return noisy_argmax(filter_logits(logits, filters), noise)

    return choose


def drawn(filters: Filters) -> Choice:
    """Draws from the filtered distribution, each position with the key of its place in the batch, so that
    neither the size of the chunks nor the number of devices changes what is drawn."""

    def choose(key: Key, logits: Logits, places: jax.Array, noise: Any) -> jax.Array:
        del noise
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        return jax.vmap(draw)(keys, filter_logits(logits, filters))

    return choose


def greedy_at_last(choose: Choice) -> Choice:
    """`choose`, or `most_probable` after the last step, in a program that holds the network only once.

    Args:
      choose: is given the first of a pair as its key; the second says whether this is after the last step.
    """

    def either(key: Any, logits: Logits, places: jax.Array, noise: Any) -> jax.Array:
        key, last = key
        return jax.lax.cond(last, most_probable, choose, key, logits, places, noise)

    return either


def most_probable(key: Key | None, logits: Logits, places: jax.Array, noise: Any) -> jax.Array:
    """The likeliest token of each position; the key is needed by none."""
    del key, places, noise
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
