"""Sampling from a causal network with its cache: one `lax.scan`, one token a step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import whole
from sdtt_jax.networks.cache import KVCache
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.categorical import Filters, draw, filter_logits
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import Key, Params, Tokens


def generate(
    network: CausalNetwork,
    params: Params,
    key: Key,
    prompt: Tokens,
    num_tokens: int,
    **filters: Any,
) -> Tokens:
    """Continues `prompt` by `num_tokens` tokens, in as many network calls (the prompt's included).

    Args:
      network: a causal network.
      params: its parameters, unboxed.
      key: PRNG key; token i of the continuation is drawn with `fold_in(key, i)`.
      prompt: `[batch, p]` int32, p at least 1 (usually BOS alone).
      num_tokens: how many tokens to add.
      **filters: fields of `Filters`: temperature (0 is greedy), top_k, top_p.

    Returns:
      `[batch, p + num_tokens]` int32, the prompt included.

    Raises:
      ConfigError: for an empty prompt, an id that does not exist, a negative `num_tokens`, a filter out of
        range, or more positions than the network has.
    """
    prompt = jnp.asarray(as_rows(prompt, network.config.vocab_size, "prompt"))
    whole(0, num_tokens=num_tokens)
    chosen = Filters(**filters)
    if num_tokens == 0:
        return prompt
    return _generate(network, params, key, prompt, num_tokens, chosen)


@functools.partial(jax.jit, static_argnames=("network", "num_tokens", "filters"))
def _generate(
    network: CausalNetwork,
    params: Params,
    key: Key,
    prompt: Tokens,
    num_tokens: int,
    filters: Filters,
) -> Tokens:
    def choose(hidden: jax.Array, index: jax.Array | int) -> jax.Array:
        logits = network.logits(params, hidden[:, -1])
        if filters.greedy:  # no noise is drawn
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return draw(jax.random.fold_in(key, index), filter_logits(logits, filters))

    def step(
        carry: tuple[jax.Array, KVCache], index: jax.Array
    ) -> tuple[tuple[jax.Array, KVCache], jax.Array]:
        newest, cache = carry  # the newest token is not yet in the cache
        hidden, cache = network.decode(params, newest[:, None], cache)
        token = choose(hidden, index)
        return (token, cache), token

    batch, prompt_length = prompt.shape
    # The last token is never fed back, so the cache needs no place for it.
    cache = network.init_cache(batch, prompt_length + num_tokens - 1)
    hidden, cache = network.decode(params, prompt, cache)
    first = choose(hidden, 0)
    _, rest = jax.lax.scan(step, (first, cache), jnp.arange(1, num_tokens, dtype=jnp.int32))
    return jnp.concatenate([prompt, first[:, None], rest.T], axis=1)
