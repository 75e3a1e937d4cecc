"""Sampling from a causal network with its cache: one `lax.scan`, one token a step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import whole
from sdtt_jax.networks.attention import causal_mask
from sdtt_jax.networks.cache import KVCache
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.categorical import Filters, draw, filter_logits
from sdtt_jax.ops.sequences import Sequences, as_read
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import Key, Params, Segments, Tokens


def generate(
    network: CausalNetwork,
    params: Params,
    key: Key,
    prompt: Tokens,
    num_tokens: int,
    sequences: Sequences | None = None,
    **filters: Any,
) -> Tokens:
    """Continues `prompt` by `num_tokens` tokens, in as many network calls (the prompt's included).

    Args:
      network: a causal network.
      params: its parameters, unboxed.
      key: PRNG key; token i of the continuation is drawn with `fold_in(key, i)`.
      prompt: `[batch, p]` int32, p at least 1 (usually BOS alone).
      num_tokens: how many tokens to add.
      sequences: how the network's training sequences were packed; with "documents" what follows an EOS is a
        text of its own, as `as_read` reads it. None: all tokens see those before them.
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
    return _generate(network, params, key, prompt, num_tokens, chosen, sequences)


@functools.partial(jax.jit, static_argnames=("network", "num_tokens", "filters", "sequences"))
def _generate(
    network: CausalNetwork,
    params: Params,
    key: Key,
    prompt: Tokens,
    num_tokens: int,
    filters: Filters,
    sequences: Sequences | None,
) -> Tokens:
    def choose(hidden: jax.Array, index: jax.Array | int) -> jax.Array:
        logits = network.logits(held.whole, hidden[:, -1])
        if filters.greedy:  # no noise is drawn
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return draw(jax.random.fold_in(key, index), filter_logits(logits, filters))

    def decode(
        newest: jax.Array, cache: KVCache, tokens: jax.Array | None
    ) -> tuple[jax.Array, KVCache]:
        """Reads `newest: [batch, n]`, not yet in the cache; `tokens` are all, None if all see each other."""
        if tokens is None:
            return network.decode(held, newest, cache)
        read, segments = as_read(tokens, sequences)
        assert segments is not None
        count = newest.shape[1]
        newest = jax.lax.dynamic_slice_in_dim(read, cache.used, count, axis=1)
        visible = _visible(segments, count, cache.used, capacity)
        return network.decode(held, newest, cache, visible)

    def put(tokens: jax.Array | None, token: jax.Array, index: jax.Array) -> jax.Array | None:
        return None if tokens is None else tokens.at[:, prompt_length + index].set(token)

    def step(carry: tuple[Any, ...], index: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        newest, cache, tokens = carry  # the newest token is not yet in the cache
        hidden, cache = decode(newest[:, None], cache, tokens)
        token = choose(hidden, index)
        return (token, cache, put(tokens, token, index)), token

    batch, prompt_length = prompt.shape
    # The last token is never fed back, so the cache needs no place for it.
    capacity = prompt_length + num_tokens - 1
    held, cache = network.apart(params), network.init_cache(batch, capacity)
    # Which text a token belongs to depends on all tokens before it.
    whole = jnp.pad(prompt, ((0, 0), (0, num_tokens)))
    tokens = None if as_read(whole, sequences)[1] is None else whole
    hidden, cache = decode(prompt, cache, tokens)
    first = choose(hidden, 0)
    begun = first, cache, put(tokens, first, jnp.int32(0))
    _, rest = jax.lax.scan(step, begun, jnp.arange(1, num_tokens, dtype=jnp.int32))
    return jnp.concatenate([prompt, first[:, None], rest.T], axis=1)


def _visible(segments: Segments, count: int, used: jax.Array, capacity: int) -> jax.Array:
    """What the `count` positions after the cache's `used` see, as `CausalNetwork.decode` takes it."""
    mine = jax.lax.dynamic_slice_in_dim(segments, used, count, axis=1)
    place = jnp.arange(capacity, dtype=jnp.int32)
    past = (mine[:, :, None] == segments[:, None, place]) & (place < used)
    among = (mine[:, :, None] == mine[:, None, :]) & causal_mask(count)
    return jnp.concatenate([past, among], axis=-1)[:, None]
