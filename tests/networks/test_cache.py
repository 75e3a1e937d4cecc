"""The key-value cache alone: where new positions go, and what a query may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.config import changed
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.attention import attend
from sdtt_jax.networks.cache import LayerPast, attend_causally, cache_for, extend

LAYERS, BATCH, HEADS, KV = 2, 3, 2, 4
CONFIG = CausalConfig(
    7, length=6, num_layers=LAYERS, embed_dim=HEADS * KV, num_heads=HEADS, compute_dtype="float32"
)


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_extend_appends_positions_and_leaves_the_written_ones_alone():
    cache = cache_for(CONFIG, BATCH, 5)
    first = LayerPast(*(_random(i, LAYERS, BATCH, HEADS, 2, KV) for i in (0, 1)))
    second = LayerPast(*(_random(i, LAYERS, BATCH, HEADS, 3, KV) for i in (2, 3)))

    cache = jax.jit(lambda *x: extend(extend(x[0], x[1]), x[2]))(cache, first, second)

    assert int(cache.used) == 5
    for held, old, new in zip(cache.past, first, second, strict=True):
        np.testing.assert_array_equal(held, np.concatenate([old, new], axis=3))


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("spare", [0, 3], ids=["full", "with-spare-room"])
@pytest.mark.parametrize("split", [1, 4])
def test_attention_over_the_cache_equals_attention_over_the_whole_sequence(split, spare, group):
    """Oracle: causal attention without a cache. Entries beyond `used` are huge, so a leak shows."""
    length = 6
    key, value = (_random(i, BATCH, length, HEADS, KV) for i in (1, 2))
    query = _random(0, BATCH, length, group * HEADS, KV)
    whole = np.asarray(jax.jit(attend, static_argnames="causal")(query, key, value, causal=True))

    cache = cache_for(changed(CONFIG, num_layers=1), BATCH, split + spare)
    for start, stop in ((0, split), (split, length)):
        part = (x[:, start:stop] for x in (query, key, value))
        past = LayerPast(*(np.asarray(x)[0] for x in cache.past))
        mixed, new = jax.device_get(jax.jit(attend_causally)(*part, past, cache.used))
        np.testing.assert_allclose(mixed, whole[:, start:stop], atol=1e-6)
        if stop == split:
            cache = jax.jit(extend)(cache, LayerPast(*(x[None] for x in new)))
            junk = np.arange(split + spare)[:, None] >= int(cache.used)
            filled = LayerPast(*(np.where(junk, np.float32(1e9), x) for x in cache.past))
            cache = cache.replace(past=filled)


def test_the_cache_keeps_its_dtype():
    cache = cache_for(changed(CONFIG, compute_dtype="bfloat16"), BATCH, 2)
    new = LayerPast(*(np.ones((LAYERS, BATCH, HEADS, 1, KV), np.float32) for _ in range(2)))
    assert jax.jit(extend)(cache, new).past.keys.dtype == jnp.bfloat16
