"""Sampling from a causal network with its cache: one program reads the prompt, another writes the rest."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import whole
from sdtt_jax.networks.attention import causal_mask
from sdtt_jax.networks.cache import KVCache
from sdtt_jax.networks.causal import Apart, CausalNetwork
from sdtt_jax.ops.categorical import Filters, divided, draw, filter_logits
from sdtt_jax.ops.sequences import Sequences, as_read
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import Key, Params, Segments, Tokens

PLACES = 32
"""A cache holds a multiple of so many positions, or as many as the network has."""


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
    num_tokens = int(num_tokens)  # a NumPy number of few bits would overflow below
    chosen = Filters(**filters)
    if num_tokens == 0:
        return prompt
    # The last token is never fed back, so the cache needs no place for it.
    places = prompt.shape[1] + num_tokens - 1
    # In steps, so that prompts of other lengths share the program that writes.
    most = math.inf if network.max_length is None else max(places, network.max_length)
    capacity = int(min(-(-places // PLACES) * PLACES, most))
    # One program for all temperatures but 0 and 1.
    temperature = None
    if not chosen.greedy and chosen.temperature != 1.0:
        temperature = jax.device_put(np.float32(chosen.temperature))
        chosen = dataclasses.replace(chosen, temperature=1.0)
    given = network, params, key, chosen, sequences
    first, cache, tokens = read_prompt(*given, prompt, capacity, temperature)
    written = [first[:, None]]
    if num_tokens > 1:
        rest, _ = write_on(*given, first, cache, tokens, num_tokens, temperature)
        written.append(rest)
    return jnp.concatenate([prompt, *written], axis=1)


@functools.partial(jax.jit, static_argnames=("network", "filters", "sequences", "capacity"))
def read_prompt(
    network: CausalNetwork,
    params: Params,
    key: Key,
    filters: Filters,
    sequences: Sequences | None,
    prompt: Tokens,
    capacity: int,
    temperature: jax.Array | None = None,
) -> tuple[jax.Array, KVCache, Tokens | None]:
    """The first program of `generate`: reads a prompt.

    Args:
      network, params, key, filters, sequences, prompt: as for `generate`.
      capacity: positions of the cache.
      temperature: `[]` float32, a further divisor of the logits; None: no further one.

    Returns:
      The first token after the prompt, `[batch]`; the cache; all tokens if `sequences` needs them, else None.
    """
    batch, length = prompt.shape
    # Which text a token belongs to depends on all tokens before it.
    whole = jnp.pad(prompt, ((0, 0), (0, capacity + 1 - length)))
    tokens = None if as_read(whole, sequences)[1] is None else whole
    cache = network.init_cache(batch, capacity)
    hidden, cache = _decode(network, params, prompt, cache, tokens, sequences)
    first = _choose(network, params, key, filters, temperature, hidden, 0)
    return first, cache, _put(tokens, first, cache)


@functools.partial(
    jax.jit,
    static_argnames=("network", "filters", "sequences", "num_tokens"),
    donate_argnames="cache",
)
def write_on(
    network: CausalNetwork,
    params: Params,
    key: Key,
    filters: Filters,
    sequences: Sequences | None,
    first: jax.Array,
    cache: KVCache,
    tokens: Tokens | None,
    num_tokens: int,
    temperature: jax.Array | None = None,
) -> tuple[Tokens, KVCache]:
    """The second: the tokens after the first, `[batch, num_tokens - 1]`, and the cache in the same memory.

    Args:
      network, params, key, filters, sequences, num_tokens: as for `generate`.
      first, cache, tokens: what `read_prompt` returned.
      temperature: as for `read_prompt`.
    """
    held = network.apart(params)

    def step(carry: tuple[Any, ...], index: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        newest, cache, tokens = carry  # the newest token is not yet in the cache
        hidden, cache = _decode(network, held, newest[:, None], cache, tokens, sequences)
        token = _choose(network, held.whole, key, filters, temperature, hidden, index)
        return (token, cache, _put(tokens, token, cache)), token

    indices = jnp.arange(1, num_tokens, dtype=jnp.int32)
    (_, cache, _), rest = jax.lax.scan(step, (first, cache, tokens), indices)
    return rest.T, cache


def _decode(
    network: CausalNetwork,
    params: Params | Apart,
    newest: Tokens,
    cache: KVCache,
    tokens: Tokens | None,
    sequences: Sequences | None,
) -> tuple[jax.Array, KVCache]:
    """Reads `newest: [batch, n]`, not yet in the cache; `tokens` are all, None if all see each other."""
    if tokens is None:
        return network.decode(params, newest, cache)
    read, segments = as_read(tokens, sequences)
    assert segments is not None
    count = newest.shape[1]
    newest = jax.lax.dynamic_slice_in_dim(read, cache.used, count, axis=1)
    visible = _visible(segments, count, cache.used, tokens.shape[1] - 1)
    return network.decode(params, newest, cache, visible)


def _choose(
    network: CausalNetwork,
    params: Params,
    key: Key,
    filters: Filters,
    temperature: jax.Array | None,
    hidden: jax.Array,
    index: jax.Array | int,
) -> jax.Array:
    """The token `[batch]` after the last hidden state, the continuation's number `index`."""
    logits = network.logits(params, hidden[:, -1])
    if filters.greedy:  # no noise is drawn
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits if temperature is None else divided(logits, temperature)
    return draw(jax.random.fold_in(key, index), filter_logits(logits, filters))


def _put(tokens: Tokens | None, token: jax.Array, cache: KVCache) -> Tokens | None:
    return None if tokens is None else tokens.at[:, cache.used].set(token)


def _visible(segments: Segments, count: int, used: jax.Array, capacity: int) -> jax.Array:
    """What the `count` positions after the cache's `used` see, as `CausalNetwork.decode` takes it."""
    mine = jax.lax.dynamic_slice_in_dim(segments, used, count, axis=1)
    place = jnp.arange(capacity, dtype=jnp.int32)
    past = (mine[:, :, None] == segments[:, None, place]) & (place < used)
    among = (mine[:, :, None] == mine[:, None, :]) & causal_mask(count)
    return jnp.concatenate([past, among], axis=-1)[:, None]
