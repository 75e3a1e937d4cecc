"""Attention and rotary embeddings. Oracles: NumPy in float64, the relative-position property."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.networks.attention import attend, plain_attention, rotary_tables, rotate
from sdtt_jax.networks.attention.dispatch import FORMS, LENGTH_BY_HEAD
from sdtt_jax.networks.attention.kernels import Saved
from tests.networks.plain import attend_plainly

BATCH, LENGTH, HEADS, DIM = 2, 5, 3, 8


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _numpy_attention(query, key, value, causal):
    out = np.zeros(query.shape)
    length = query.shape[1]
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        scores = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[-1])
        if causal:
            scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[b, :, h] = weights @ value[b, :, h]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_numpy(causal):
    query, key, value = (_random(i, BATCH, LENGTH, HEADS, DIM) for i in range(3))
    expected = _numpy_attention(*(np.asarray(x, np.float64) for x in (query, key, value)), causal)
    for function in (attend, attend_plainly):
        found = jax.jit(functools.partial(function, causal=causal))(query, key, value)
        np.testing.assert_allclose(found, expected, atol=2e-6)


@functools.partial(jax.jit, static_argnames=("name", "causal"))
def _checked(name, causal, *arrays, segments=None):
    """Values and gradients of a form, and those of the plain form."""
    *inputs, gradient = arrays
    form = FORMS[name]
    mixed, lse = form.forward(*inputs, causal, segments)
    plain = functools.partial(attend_plainly, causal=causal, segments=segments)
    expected, pull_back = jax.vjp(plain, *inputs)
    grads = form.backward(Saved(*inputs, mixed, lse, segments), gradient, causal)
    return (mixed, *grads), (expected, *pull_back(gradient))


ANYWHERE = ("at_once", "by_head")


# The texts of two sequences of 13: three texts and padding, and texts of one token.
SEGMENTS = np.array([[0] * 5 + [1] * 3 + [2] * 2 + [-1] * 3, [*range(13)]], np.int32)


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["whole", "segments"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ANYWHERE)
def test_values_and_gradients_of_each_form_equal_the_plain_one_s_in_float64(form, causal, segments):
    with jax.enable_x64(True):
        arrays = (_random(i, BATCH, 13, HEADS, DIM).astype(np.float64) for i in range(4))
        ours, theirs = _checked(form, causal, *arrays, segments=segments)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == jnp.float64
            np.testing.assert_allclose(one, other, atol=1e-13)


@pytest.mark.parametrize("form", ANYWHERE)
def test_scores_of_any_size_are_safe(form):
    """The largest score is subtracted before the exponential: e^500 would overflow."""
    arrays = [_random(i, 1, LENGTH, HEADS, DIM) for i in range(4)]
    arrays[0] = arrays[0] * 500
    ours, theirs = _checked(form, False, *arrays)
    for one, other in zip(ours, theirs, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_long_sequences_take_the_form_by_head(causal):
    arrays = [_random(i, 1, LENGTH_BY_HEAD, 2, DIM) for i in range(4)]

    @jax.jit
    def both(*arrays):
        results = []
        for function in (attend, attend_plainly):
            mixed, pull_back = jax.vjp(functools.partial(function, causal=causal), *arrays[:3])
            results.append((mixed, pull_back(arrays[3])))
        return results

    (mixed, grads), (expected, expected_grads) = both(*arrays)
    np.testing.assert_allclose(mixed, expected, atol=2e-6)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)
    text = jax.jit(lambda *x: attend(*x, causal=causal)).lower(*arrays[:3]).as_text()
    assert f"2x{LENGTH_BY_HEAD}x{LENGTH_BY_HEAD}" not in text


def test_a_row_of_the_mask_that_sees_nothing_attends_evenly_and_has_finite_gradients():
    query, key, value = (_random(i, BATCH, HEADS, LENGTH, DIM) for i in range(3))
    mask = np.zeros((LENGTH, LENGTH), bool)
    mask[1:] = True

    @jax.jit
    def mixed_and_gradient(*arrays):
        mixed, pull_back = jax.vjp(plain_attention, *arrays, mask)
        return mixed, pull_back(jnp.ones_like(mixed))[0]

    mixed, gradient = jax.device_get(mixed_and_gradient(query, key, value))
    np.testing.assert_allclose(mixed[:, :, 0], value.mean(axis=2), atol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("form", ANYWHERE)
def test_softmax_is_float32_for_bfloat16_inputs(form):
    narrow = [_random(i, BATCH, LENGTH, HEADS, DIM).astype(jnp.bfloat16) for i in range(4)]
    ours, _ = _checked(form, False, *narrow)
    _, theirs = _checked(form, False, *(x.astype(np.float32) for x in narrow))
    for one, other in zip(jax.device_get(ours), theirs, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(np.float32), other, atol=0.03)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    """RoFormer's property: <R_m q, R_n k> is a function of m - n."""
    query, key = _random(3, 1, 1, 1, DIM), _random(4, 1, 1, 1, DIM)

    @jax.jit
    def rotated(x, position):
        return rotate(x, *rotary_tables(position[None], DIM))

    def at(x, position):
        return np.asarray(rotated(x, np.int32(position)))

    np.testing.assert_allclose(np.linalg.norm(at(query, 17)), np.linalg.norm(query), rtol=1e-6)
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
