"""Attention and rotary embeddings. Oracles: NumPy in float64, the relative-position property."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.models.attention import attend, causal_mask, rotary_tables, rotate

BATCH, LENGTH, HEADS, DIM = 2, 5, 3, 8


def _random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _numpy_attention(query, key, value, mask=None):
    out = np.zeros(query.shape)
    for b in range(BATCH):
        for h in range(HEADS):
            scores = query[b, :, h] @ key[b, :, h].T / np.sqrt(DIM)
            if mask is not None:
                scores = np.where(mask, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            out[b, :, h] = weights @ value[b, :, h]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_numpy(causal):
    query, key, value = (_random(i, BATCH, LENGTH, HEADS, DIM) for i in range(3))
    mask = causal_mask(LENGTH) if causal else None
    plain = [np.asarray(x, np.float64) for x in (query, key, value)]
    expected = _numpy_attention(*plain, None if mask is None else np.asarray(mask))
    np.testing.assert_allclose(attend(query, key, value, mask=mask), expected, atol=2e-6)


def test_a_row_that_sees_nothing_attends_evenly_and_has_finite_gradients():
    query, key, value = (_random(i, BATCH, LENGTH, HEADS, DIM) for i in range(3))
    mask = jnp.zeros((LENGTH, LENGTH), bool).at[1:].set(True)
    mixed = attend(query, key, value, mask=mask)
    np.testing.assert_allclose(mixed[:, 0], value.mean(axis=1), atol=1e-6)
    gradient = jax.grad(lambda q: attend(q, key, value, mask=mask).sum())(query)
    assert bool(jnp.isfinite(gradient).all())


def test_softmax_is_float32_for_bfloat16_inputs():
    query, key, value = (_random(i, BATCH, LENGTH, HEADS, DIM) for i in range(3))
    narrow = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    mixed = attend(*narrow)
    assert mixed.dtype == jnp.bfloat16
    wide = attend(*(x.astype(jnp.float32) for x in narrow))
    np.testing.assert_allclose(mixed.astype(jnp.float32), wide, atol=0.02)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    """RoFormer's property: <R_m q, R_n k> is a function of m - n."""
    query, key = _random(3, 1, 1, 1, DIM), _random(4, 1, 1, 1, DIM)

    def at(x, position):
        return rotate(x, *rotary_tables(jnp.array([position]), DIM))

    np.testing.assert_allclose(jnp.linalg.norm(at(query, 17)), jnp.linalg.norm(query), rtol=1e-6)
    products = [float((at(query, m) * at(key, n)).sum()) for m, n in ((3, 1), (12, 10), (102, 100))]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    np.testing.assert_array_equal(at(query, 0), query)


def test_rotation_turns_pairs_half_a_head_apart():
    """Complex multiplication of x_i + i x_(i + d/2) with exp(i m f_i), f_i = 10000^(-2i/d)."""
    x, m = np.asarray(_random(5, 1, 1, 1, DIM), np.float64)[0, 0, 0], 7
    half = DIM // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * m * 10_000.0 ** (-np.arange(half) / half))
    expected = np.concatenate([turned.real, turned.imag])
    ours = rotate(_random(5, 1, 1, 1, DIM), *rotary_tables(jnp.array([m]), DIM))[0, 0, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
