"""One key-value cache for every causal network: read inside the blocks, written outside.

A block sees the cache of its layer as read-only past and returns the keys and values of the new
positions; `extend` writes those of all layers at once. Inside a `lax.scan` over tokens that single
write happens in place, where threading the cache through the scan over layers would copy it whole
at every token.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.networks.attention import attend, causal_mask, plain_attention
from sdtt_jax.networks.config import TransformerConfig


class LayerPast(NamedTuple):
    """Keys and values of one layer's earlier positions, each `[batch, heads, capacity, kv]`."""

    keys: jax.Array
    values: jax.Array


@flax.struct.dataclass
class KVCache:
    """Keys and values of the first `used` positions, for all layers."""

    # Keys and values `[layers, batch, heads, capacity, kv]`; entries from `used` on mean nothing.
    past: LayerPast
    used: jax.Array  # `[]` int32, the number of positions that have been written


def cache_for(config: TransformerConfig, batch: int, capacity: int) -> KVCache:
    """An empty cache of a network's sizes, in its compute dtype.

    Args:
      config: the network's config.
      batch: sequences.
      capacity: most positions that it can hold.
    """
    shape = (config.num_layers, batch, config.kv_heads, capacity, config.head_dim)
    dtype = jnp.dtype(config.numerics.dtype)
    past = LayerPast(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype))
    return KVCache(past=past, used=jnp.zeros((), jnp.int32))


def extend(cache: KVCache, new: LayerPast) -> KVCache:
    """The cache with `n` more positions.

    Args:
      cache: a cache with room for `used + n` positions. Under `jit` this cannot be checked, and the write
        would silently land on the last positions, so callers size the cache for all they will decode.
      new: keys and values `[layers, batch, heads, n, kv]`.
    """

    def write(past: jax.Array, fresh: jax.Array) -> jax.Array:
        fresh = fresh.astype(past.dtype)
        return jax.lax.dynamic_update_slice_in_dim(past, fresh, cache.used, axis=3)

    return KVCache(past=jax.tree.map(write, cache.past, new), used=cache.used + new.keys.shape[3])


def attend_causally(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    past: LayerPast | None = None,
    used: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, LayerPast | None]:
    """Causal attention of `n` positions over one another and, given a cache, over all earlier ones.

    Args:
      query: `[batch, n, heads, kv]`, of positions `used` to `used + n - 1`.
      key, value: `[batch, n, kv_heads, kv]`; each serves the next `heads / kv_heads` query heads.
      past: this layer's cache; None for whole sequences.
      used: `[]` int32, how many positions of `past` are written.
      segments: `[batch, n]` int32, as `attend` takes them; for whole sequences only.

    Returns:
      `[batch, n, heads, kv]` in the dtype of `value`, and the new keys and values as `extend` takes
      them, `[batch, kv_heads, n, kv]` (None without a cache). The softmax is in float32.
    """
    n = query.shape[1]
    if past is None or used is None:
        return attend(query, key, value, causal=True, segments=segments), None
    written = jnp.broadcast_to(
        jnp.arange(past.keys.shape[2], dtype=jnp.int32) < used, (n, past.keys.shape[2])
    )
    visible = jnp.concatenate([written, causal_mask(n)], axis=1)
    return attend_visible(query, key, value, past, visible)


def attend_visible(
    query: jax.Array, key: jax.Array, value: jax.Array, past: LayerPast, visible: jax.Array | None
) -> tuple[jax.Array, LayerPast]:
    """Attention of `n` positions over what they may see of a cache and of one another.

    Args:
      query: `[batch, n, heads, kv]`.
      key, value: `[batch, n, kv_heads, kv]`; each serves the next `heads / kv_heads` query heads.
      past: this layer's cache, of any capacity.
      visible: `[n, capacity + n]` bool, or `[batch, 1, n, capacity + n]`; None: all of one another and
        nothing of the cache.

    Returns:
      As `attend_causally` with a cache.
    """
    if visible is None:
        new = LayerPast(*(x.transpose(0, 2, 1, 3) for x in (key, value)))
        return attend(query, key, value), new
    n, shape = query.shape[1], query.shape
    # Per head and contiguous, the layout of the cache: one batched matmul reads it without a copy.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    keys = jnp.concatenate([past.keys.astype(key.dtype), key], axis=2)
    values = jnp.concatenate([past.values.astype(value.dtype), value], axis=2)
    # Queries that share a key head become further rows for it, so that the cache is read as it is.
    group = shape[2] // key.shape[1]
    rows = query.reshape(shape[0], -1, group * n, shape[3])
    mixed = plain_attention(rows, keys, values, jnp.tile(visible, (group, 1)))
    mixed = mixed.reshape(query.shape).transpose(0, 2, 1, 3)
    return mixed, LayerPast(keys=key, values=value)
