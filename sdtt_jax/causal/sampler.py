"""Sampling from a causal network with its cache: one `lax.scan`, one token a step."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.config import at_least, require
from sdtt_jax.keys import at_step
from sdtt_jax.networks.cache import KVCache
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.categorical import check_filters, draw, filter_logits
from sdtt_jax.typing import Params


class _Carry(NamedTuple):
    token: jax.Array  # [batch] int32, the newest token, not yet in the cache
    cache: KVCache


def generate(
    model: CausalNetwork,
    params: Params,
    key: jax.Array,
    *,
    prompt: jax.Array,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Continues `prompt` by `num_tokens` tokens, in as many network calls (the prompt's included).

    Args:
      model: a causal network.
      params: its parameters, unboxed.
      key: PRNG key; token i of the continuation is drawn with `fold_in(key, i)`.
      prompt: `[batch, p]` int32, p at least 1 (usually BOS alone).
      num_tokens: how many tokens to add.
      temperature, top_k, top_p: as in `sdtt_jax.ops.categorical.filter_logits`; temperature 0 is
        greedy.

    Returns:
      `[batch, p + num_tokens]` int32, the prompt included.

    Raises:
      ConfigError: for an empty prompt, a negative `num_tokens`, a filter out of range, or more
        positions than the network has.
    """
    require(
        prompt.ndim == 2 and prompt.shape[1] > 0, "prompt must be [batch, p] with p at least 1."
    )
    at_least(0, num_tokens=num_tokens)
    check_filters(temperature, top_k, top_p)
    prompt = prompt.astype(jnp.int32)
    if num_tokens == 0:
        return prompt
    return _generate(model, params, key, prompt, num_tokens, temperature, top_k, top_p)


def next_token(
    key: jax.Array, logits: jax.Array, temperature: float, top_k: int, top_p: float
) -> jax.Array:
    """`[batch]` int32 from `logits: [batch, vocab]`; temperature 0 takes the largest, without
    noise."""
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return draw(key, filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p))


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _generate(
    model: CausalNetwork,
    params: Params,
    key: jax.Array,
    prompt: jax.Array,
    num_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> jax.Array:
    def choose(hidden: jax.Array, index: jax.Array | int) -> jax.Array:
        logits = model.logits(params, hidden[:, -1])
        return next_token(at_step(key, index), logits, temperature, top_k, top_p)

    def step(carry: _Carry, index: jax.Array) -> tuple[_Carry, jax.Array]:
        hidden, cache = model.decode(params, carry.token[:, None], carry.cache)
        token = choose(hidden, index)
        return _Carry(token, cache), token

    batch, prompt_length = prompt.shape
    # The last token is never fed back, so the cache needs no place for it.
    cache = model.init_cache(batch, prompt_length + num_tokens - 1)
    hidden, cache = model.decode(params, prompt, cache)
    first = choose(hidden, 0)
    _, rest = jax.lax.scan(step, _Carry(first, cache), jnp.arange(1, num_tokens))
    return jnp.concatenate([prompt, first[:, None], rest.T], axis=1)
