"""Noise drawn in advance; tokens and their order are a deterministic function of it.

With Gumbel noise g for every entry, `argmax(logits + g)` is a categorical draw (Gumbel, 1954). A generation
whose noise is drawn before its first network call is therefore a function of that noise, which a network that
is shown the noise can learn.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.ops.categorical import BLOCK, in_blocks
from sdtt_jax.typing import Key, Logits, LogProbs

FULL, TWO_LEVEL = "full", "two-level"
# Kinds that are one of several values, for a whole text or for each position; no tokens are drawn with them.
LATENT, MASKS = "latent", "masks"


@flax.struct.dataclass
class Noise:
    """The noise of every position of a batch, or of one sequence."""

    # `[..., length]` float32, uniform in [0, 1): positions are revealed in its falling order.
    order: jax.Array
    # `[..., length, vocab]` float32, a Gumbel number for every token, or for every block of tokens; for
    # "latent" and "masks" the value, one-hot.
    token: jax.Array
    # `[..., length, BLOCK]` float32, if `token` is for blocks: a Gumbel number for every entry of whichever
    # block is chosen. Else None.
    entry: jax.Array | None = None


def draw_noise(key: Key, shape: tuple[int, ...], vocab: int, kind: str) -> Noise:
    """Draws the noise of positions.

    Args:
      key: PRNG key.
      shape: of the positions, `(batch, length)` or `(length,)`.
      vocab: number of tokens, MASK not included.
      kind: "full", a number for each token; or "two-level", a number for each block of `BLOCK` tokens and
        each entry of a block: 521 numbers instead of 50,257. "latent:4" and "masks:4" are one of 4 values,
        for a whole text or for each position.
    """
    if values := num_values(kind):
        return _draw_value(key, shape, values, kind)
    key_order, key_token, key_entry = jax.random.split(key, 3)
    columns = vocab if kind == FULL else -(-vocab // BLOCK)
    entry = None if kind == FULL else _gumbel(key_entry, (*shape, BLOCK))
    return Noise(
        jax.random.uniform(key_order, shape, jnp.float32),
        _gumbel(key_token, (*shape, columns)),
        entry,
    )


def num_values(kind: str) -> int:
    """The number of values of noise like "latent:4" or "masks:4"; 0 for continuous noise."""
    return int(kind.split(":")[1]) if ":" in kind else 0


def mask_of(noise: Noise, values: int) -> Noise:
    """Which of `values` masks each position has, as its Gumbel noise determines.

    Tokens are dealt to the masks in turn, and a position has the mask whose tokens hold the largest number.
    All masks are equally likely: the largest of n Gumbel numbers is itself a Gumbel number plus log n, which
    is subtracted. With as many masks as tokens, a mask tells which token has the largest number.

    Args:
      noise: "full", of `[..., length]` positions.
      values: masks, at most as many as there are tokens.

    Returns:
      Noise of the kind "masks", in the same order.

    Raises:
      ConfigError: there are more masks than tokens.
    """
    vocab = noise.token.shape[-1]
    require(
        values <= vocab,
        f"noise.num_values={values} is more masks than there are tokens ({vocab}); take at most {vocab}.",
    )
    missing = -vocab % values
    dealt = [(0, 0)] * (noise.token.ndim - 1) + [(0, missing)]
    numbers = jnp.pad(noise.token, dealt, constant_values=-jnp.inf)
    largest = numbers.reshape(*noise.token.shape[:-1], -1, values).max(axis=-2)
    tokens = (vocab - 1 - np.arange(values)) // values + 1
    mask = jnp.argmax(largest - np.log(tokens).astype(np.float32), axis=-1)
    return Noise(noise.order, jax.nn.one_hot(mask, values, dtype=jnp.float32))


def every_value(kind: str, batch: int, length: int) -> Noise:
    """Every latent value of each text, one text after the other: `[batch * values, length]` positions."""
    values = num_values(kind)
    ones = jnp.tile(jnp.eye(values, dtype=jnp.float32), (batch, 1))[:, None]
    shape = (batch * values, length)
    return Noise(jnp.zeros(shape, jnp.float32), jnp.broadcast_to(ones, (*shape, values)))


def noisy_argmax(logits: Logits, noise: Noise) -> jax.Array:
    """The token that the noise draws: softmax-distributed over random noise.

    Args:
      logits: `[n, vocab]` float32.
      noise: of the same positions, `[n]`; its `order` plays no part.

    Returns:
      `[n]` int32.
    """
    if noise.entry is None:
        return jnp.argmax(logits + noise.token, axis=-1).astype(jnp.int32)
    blocks = in_blocks(logits)
    block = jnp.argmax(jax.nn.logsumexp(blocks, axis=-1) + noise.token, axis=-1)
    entries = jnp.take_along_axis(blocks, block[:, None, None], axis=-2)[:, 0]
    return (block * BLOCK + jnp.argmax(entries + noise.entry, axis=-1)).astype(jnp.int32)


def noise_given(log_probs: LogProbs, tokens: jax.Array, noise: Noise) -> Noise:
    """A draw from the noise's posterior, given the tokens that it draws from these distributions.

    `noisy_argmax(log_probs, result)` is `tokens`. For tokens that are themselves drawn from `log_probs` the
    result is distributed like fresh noise: the largest of the sums `log_probs + g` is a Gumbel number
    whichever entry has it, and the others are Gumbel numbers truncated at it (Maddison et al., arXiv
    1411.0030).

    Args:
      log_probs: `[n, vocab]` float32, normalised.
      tokens: `[n]` int32.
      noise: fresh noise of the same positions, `[n]`, which is turned into a draw from the posterior.

    Returns:
      Noise of the same shape; its `order` is that of `noise`.
    """
    if noise.entry is None:
        return dataclasses.replace(noise, token=_given(log_probs, tokens, noise.token))
    blocks, block, entry = in_blocks(log_probs), tokens // BLOCK, tokens % BLOCK
    of_blocks = jax.nn.logsumexp(blocks, axis=-1)
    entries = jnp.take_along_axis(blocks, block[:, None, None], axis=-2)[:, 0]
    return dataclasses.replace(
        noise,
        token=_given(of_blocks, block, noise.token),
        entry=_given(jax.nn.log_softmax(entries), entry, noise.entry),
    )


def _given(log_probs: LogProbs, chosen: jax.Array, numbers: jax.Array) -> jax.Array:
    """Gumbel numbers with which `chosen` has the largest sum: `[n, entries]`."""
    own = jnp.arange(numbers.shape[-1], dtype=jnp.int32) == chosen[:, None]
    largest = jnp.where(own, numbers, 0.0).sum(axis=-1, keepdims=True)
    below = -jnp.logaddexp(-numbers, log_probs - largest)
    return jnp.where(own, numbers - log_probs, below)


def _draw_value(key: Key, shape: tuple[int, ...], values: int, kind: str) -> Noise:
    key_order, key_value = jax.random.split(key)
    each = (*shape[:-1], 1) if kind.startswith(LATENT) else shape
    value = jnp.broadcast_to(jax.random.randint(key_value, each, 0, values), shape)
    order = jax.random.uniform(key_order, shape, jnp.float32)
    return Noise(order, jax.nn.one_hot(value, values, dtype=jnp.float32))


def _gumbel(key: Key, shape: tuple[int, ...]) -> jax.Array:
    # The default mode cannot draw above about 16.6; see `ops.categorical.draw`.
    return jax.random.gumbel(key, shape, jnp.float32, mode="high")
