"""Keys and values of positions that a network has already read.

A causal network's `KVCache` has arrays for each layer, which the layer writes itself, in place. Were they
stacked and scanned over, each layer's keys and values would be copied out of the stack for every token. A
denoiser only reads its `LayerPast`, which holds finished blocks of text, so its layers are stacked.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.networks.attention import attend, plain_attention
from sdtt_jax.networks.config import TransformerConfig


class LayerPast(NamedTuple):
    """What one layer reads of other positions, each `[batch, kv_heads, capacity, kv]`."""

    keys: jax.Array
    values: jax.Array


class LayerCache(NamedTuple):
    """What one layer reads and writes, each `[batch, kv_heads, capacity, kv]`; for one text without `batch`.

    XLA's CPU backend drops an axis of length one, and copies an array that has one in order to write to it:
    75 MB for each token of one text at 12 x 768 and 1024 positions.
    """

    keys: jax.Array
    values: jax.Array


@flax.struct.dataclass
class KVCache:
    """Keys and values of the first `used` positions; entries from `used` on mean nothing."""

    layers: tuple[LayerCache, ...]
    used: jax.Array  # `[]` int32, the number of positions that have been written


def cache_for(config: TransformerConfig, batch: int, capacity: int) -> KVCache:
    """An empty cache of a network's sizes, in its compute dtype.

    Args:
      config: the network's config.
      batch: sequences.
      capacity: most positions that it can hold.
    """
    one = (config.kv_heads, capacity, config.head_dim)
    shape, dtype = one if batch == 1 else (batch, *one), jnp.dtype(config.numerics.dtype)
    layers = tuple(
        LayerCache(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype))
        for _ in range(config.num_layers)
    )
    return KVCache(layers=layers, used=jnp.zeros((), jnp.int32))


def no_past(config: TransformerConfig, batch: int) -> LayerPast:
    """The past of a denoiser that has read nothing yet, `[layers, batch, kv_heads, 0, kv]`."""
    shape = (config.num_layers, batch, config.kv_heads, 0, config.head_dim)
    nothing = jnp.zeros(shape, jnp.dtype(config.numerics.dtype))
    return LayerPast(keys=nothing, values=nothing)


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
      `[batch, n, heads, kv]` in the dtype of `value`, and the new keys and values, each
      `[batch, kv_heads, n, kv]`.
    """
    if visible is None:
        new = LayerPast(*(x.transpose(0, 2, 1, 3) for x in (key, value)))
        return attend(query, key, value), new
    # Per head and contiguous, the layout of the cache: one batched matmul reads it without a copy.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    keys = jnp.concatenate([past.keys.astype(key.dtype), key], axis=2)
    values = jnp.concatenate([past.values.astype(value.dtype), value], axis=2)
    return _grouped(query, keys, values, visible), LayerPast(keys=key, values=value)


def attend_cached(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    cache: LayerCache,
    used: jax.Array,
    visible: jax.Array | None,
) -> tuple[jax.Array, LayerCache]:
    """Causal attention of `n` positions, whose keys and values are written into the cache first.

    Args:
      query: `[batch, n, heads, kv]`, of positions `used` to `used + n - 1`.
      key, value: `[batch, n, kv_heads, kv]`; each serves the next `heads / kv_heads` query heads.
      cache: this layer's, with room for `n` more positions. Under `jit` this cannot be checked, and the write
        would silently land on the last positions, so callers size the cache for all they will decode.
      used: `[]` int32, how many positions of `cache` are written.
      visible: as `CausalNetwork.decode` takes it; None: each sees itself and all before.

    Returns:
      `[batch, n, heads, kv]` in the dtype of `value`, and the cache with the new positions. The softmax is in
      float32.
    """
    n, capacity = query.shape[1], cache.keys.shape[-2]
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))

    def write(held: jax.Array, new: jax.Array) -> jax.Array:
        new = new.reshape(*held.shape[:-2], n, -1).astype(held.dtype)
        return jax.lax.dynamic_update_slice_in_dim(held, new, used, axis=-2)

    written = LayerCache(keys=write(cache.keys, key), values=write(cache.values, value))
    if visible is None:
        places = jnp.arange(capacity, dtype=jnp.int32)
        visible = places <= used + jnp.arange(n, dtype=jnp.int32)[:, None]
    else:
        old, new = jnp.split(visible, [capacity], axis=-1)
        visible = jax.lax.dynamic_update_slice_in_dim(old, new, used, axis=-1)
    keys, values = (x.reshape(*key.shape[:2], capacity, -1).astype(key.dtype) for x in written)
    return _grouped(query, keys, values, visible), written


def _grouped(query: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of queries `[batch, heads, n, kv]` over keys and values `[batch, kv_heads, places, kv]`.

    `visible` broadcasts to `[batch, 1, n, places]`; the result is `[batch, n, heads, kv]`.
    """
    batch, heads, n, kv = query.shape
    # Queries that share a key head become further rows for it, so that the cache is read as it is.
    group = heads // keys.shape[1]
    rows = query.reshape(batch, -1, group * n, kv)
    mixed = plain_attention(rows, keys, values, jnp.tile(visible, (group, 1)))
    return mixed.reshape(query.shape).transpose(0, 2, 1, 3)
