"""The key-value cache alone: where new positions go, and what a query may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.config import changed
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.attention import attend
from sdtt_jax.networks.cache import LayerCache, attend_cached, cache_for

HEADS, KV, LENGTH = 2, 4, 6
CONFIG = CausalConfig(
    7, length=6, num_layers=1, embed_dim=HEADS * KV, num_heads=HEADS, compute_dtype="float32"
)


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(("group", "batch"), [(1, 3), (3, 3), (3, 1)])
@pytest.mark.parametrize("spare", [0, 3], ids=["full", "with-spare-room"])
@pytest.mark.parametrize("split", [1, 4])
def test_attention_over_the_cache_equals_attention_over_the_whole_sequence(
    split, spare, group, batch
):
    """Oracles: causal attention without a cache; the keys and values themselves, in their order.

    Entries beyond `used` are huge, so a leak shows, and stay as they are.
    """
    key, value = (_random(i, batch, LENGTH, HEADS, KV) for i in (1, 2))
    query = _random(0, batch, LENGTH, group * HEADS, KV)
    whole = np.asarray(jax.jit(attend, static_argnames="causal")(query, key, value, causal=True))

    (cache,) = cache_for(CONFIG, batch, LENGTH + spare).layers
    assert cache.keys.ndim == 3 + (batch > 1), "XLA copies an array that has an axis of length one"
    cache = LayerCache(*(np.full_like(x, 1e9) for x in cache))
    for start, stop in ((0, split), (split, LENGTH)):
        part = (x[:, start:stop] for x in (query, key, value))
        mixed, cache = jax.jit(attend_cached)(*part, cache, jnp.int32(start), None)
        np.testing.assert_allclose(mixed, whole[:, start:stop], atol=1e-6)
        for held, given in zip(cache, (key, value), strict=True):
            places = np.asarray(held).reshape(batch, HEADS, -1, KV).transpose(0, 2, 1, 3)
            np.testing.assert_array_equal(places[:, :stop], given[:, :stop])
            np.testing.assert_array_equal(places[:, stop:], 1e9)


def test_the_cache_keeps_its_dtype():
    cache = cache_for(changed(CONFIG, compute_dtype="bfloat16"), 3, 2)
    new = np.ones((3, 1, HEADS, KV), np.float32)
    (layer,), used = cache.layers, cache.used
    mixed, written = jax.jit(attend_cached)(new, new, new, layer, used, None)
    assert mixed.dtype == jnp.float32
    assert written.keys.dtype == written.values.dtype == jnp.bfloat16
