"""The shared layers. Oracles: NumPy; the ranges of the reference's initialisation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.networks.config import NUMERICS
from sdtt_jax.networks.layers import Embedding, Head, LayerNorm, Linear, Mlp, spread
from sdtt_jax.ops.categorical import NEG_INFINITY


def _init(module, *inputs):
    variables = jax.jit(lambda *x: nn.unbox(module.init(jax.random.key(0), *x)))(*inputs)
    return jax.device_get(variables["params"])


def _apply(module, params, *inputs):
    return jax.jit(lambda params, *x: module.apply({"params": params}, *x))(params, *inputs)


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_linear_over_several_axes_is_one_contraction():
    x = _random(0, 2, 5, 3, 4)
    layer = Linear((3, 4), (6, 2), ("heads", "kv", "embed", None))
    params = _init(layer, x)
    assert params["kernel"].shape == (3, 4, 6, 2)
    params = {"kernel": params["kernel"], "bias": _random(1, 6, 2)}
    expected = np.einsum("blhk,hkij->blij", x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(_apply(layer, params, x), expected, atol=1e-5)


def test_kernels_start_uniform_within_one_over_root_fan_in_and_biases_at_zero():
    params = _init(Linear((8, 8), (512,), ("heads", "kv", "embed")), _random(0, 1, 8, 8))
    kernel, bound = np.asarray(params["kernel"]), 1 / np.sqrt(64)
    assert np.abs(kernel).max() <= bound
    assert np.abs(kernel).max() > 0.99 * bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert np.all(np.asarray(params["bias"]) == 0)


def test_zero_linear_starts_at_zero():
    params = _init(Linear((4,), (3,), ("embed", "vocab"), zero=True), _random(0, 1, 4))
    assert np.all(np.asarray(params["kernel"]) == 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm(dtype):
    # The second text's variance is no larger than the epsilon.
    sizes = np.float32([1, 1e-3]).reshape(2, 1, 1)
    x = ((5 + 3 * _random(1, 2, 7, 16)) * sizes).astype(dtype)
    scale = _random(2, 16)
    ours = _apply(LayerNorm(16), {"scale": scale}, x)
    assert ours.dtype == dtype
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt(wide.var(axis=-1, keepdims=True) + 1e-5) * np.asarray(scale)
    tolerance = 4e-6 if dtype == jnp.float32 else 2**-8  # of one rounding
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=tolerance, atol=1e-6)


def test_embedding_rows_start_within_one_over_root_of_the_features():
    table = _init(Embedding(1000, 16), np.zeros((1, 1), np.int32))["embedding"]
    assert table.shape == (1000, 16)
    assert np.abs(table).max() == pytest.approx(0.25, rel=0.01)


def test_the_gradient_of_an_embedding_that_thousands_of_tokens_share_is_summed_in_float32():
    """A sum of ones in bfloat16 stops at 256: 256 + 1 is rounded to 256."""
    layer = Embedding(3, 4, NUMERICS["bfloat16"])
    tokens = np.full((2, 1000), 1, np.int32)
    params = _init(layer, tokens)

    def total(params):
        return layer.apply({"params": params}, tokens).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total))(params)["embedding"]
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, [[0] * 4, [2000] * 4, [0] * 4])


@pytest.mark.parametrize("numerics", NUMERICS.values(), ids=NUMERICS)
def test_a_tied_head_multiplies_with_the_table_and_has_gradients(numerics):
    """Sums are float32 in every dtype. Oracle: NumPy in float64, on the rounded numbers."""
    layer, table, weights = Embedding(9, 8, numerics), _random(0, 9, 8), _random(1, 4, 16, 9)
    hidden = jnp.asarray(_random(2, 4, 16, 8), numerics.dtype)

    @jax.jit
    def both(table, hidden):
        def logits(table, hidden):
            return layer.apply({"params": {"embedding": table}}, hidden, method="attend")

        found, pull_back = jax.vjp(logits, table, hidden)
        return found, *pull_back(weights)

    def rounded(x):
        return np.asarray(jnp.asarray(x, numerics.products), np.float64)

    found, d_table, d_hidden = both(table, hidden)
    assert (found.dtype, d_table.dtype, d_hidden.dtype) == (np.float32, np.float32, hidden.dtype)
    np.testing.assert_allclose(found, rounded(hidden) @ rounded(table).T, rtol=1e-5, atol=1e-5)
    exact = np.einsum("blv,ble->ve", rounded(weights), rounded(hidden))
    np.testing.assert_allclose(d_table, exact, rtol=1e-5, atol=1e-5)
    tolerance = 0.01 if numerics.dtype == "bfloat16" else 1e-5
    d_exact = rounded(weights) @ rounded(table)
    np.testing.assert_allclose(
        np.asarray(d_hidden, np.float64), d_exact, rtol=tolerance, atol=tolerance
    )


def test_gradients_of_a_bfloat16_head_multiply_bfloat16_and_sum_in_float32():
    """A float32 product takes a GPU twice as long. Oracle: NumPy in float64, on the rounded numbers."""
    layer = Head(8, vocab=6, padded_vocab=8, numerics=NUMERICS["bfloat16"])
    hidden, weights = _random(0, 64, 8).astype(jnp.bfloat16), _random(1, 64, 8)
    params = _init(layer, hidden)
    params["linear"]["kernel"] = _random(2, 8, 8)

    def total(params, hidden):
        return (layer.apply({"params": params}, hidden) * weights).sum()

    gradients = jax.grad(total, argnums=(0, 1))
    d_params, d_hidden = jax.jit(gradients)(params, hidden)
    passed = np.array(weights.astype(jnp.bfloat16), np.float64) * (np.arange(8) < 6)
    kernel = np.asarray(params["linear"]["kernel"].astype(jnp.bfloat16), np.float64)
    exact = np.asarray(hidden, np.float64).T @ passed
    np.testing.assert_allclose(d_params["linear"]["kernel"], exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(d_hidden, np.float64), passed @ kernel.T, rtol=0.01, atol=0.01
    )
    lowered = jax.jit(gradients).lower(params, hidden).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) == 2  # the forward product is not needed
    assert all(line.count("bf16") == 2 for line in products)


@pytest.mark.parametrize("in_shape", [(8,), (2, 4)])
@pytest.mark.parametrize("out_shape", [(6,), (3, 2)])
def test_narrow_products_round_their_factors_alone(in_shape, out_shape):
    """Results, gradients and sums are float32. Oracle: NumPy in float64, on the rounded numbers."""
    axes = tuple("abcd"[: len(in_shape + out_shape)])
    layer = Linear(in_shape, out_shape, axes, numerics=NUMERICS["bf16_bf16_f32"])
    x, weights = _random(0, 4, 16, *in_shape), _random(1, 4, 16, *out_shape)
    params = _init(layer, x)
    assert params["kernel"].dtype == np.float32

    @jax.jit
    def both(params, x, gradient):
        found, pull_back = jax.vjp(lambda p, x: layer.apply({"params": p}, x), params, x)
        return found, *pull_back(gradient)

    def rounded(x):
        return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)

    found, d_params, d_x = both(params, x, weights)
    rows, kernel = rounded(x).reshape(4, 16, 8), rounded(params["kernel"]).reshape(8, -1)
    passed = rounded(weights).reshape(4, 16, -1)
    exact = (rows @ kernel).reshape(weights.shape), (passed @ kernel.T).reshape(x.shape)
    d_kernel = np.einsum("bne,bno->eo", rows, passed).reshape(*in_shape, *out_shape)
    for ours, theirs in zip((found, d_x, d_params["kernel"]), (*exact, d_kernel), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_params["bias"], weights.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_mlp_is_linear_gelu_linear():
    x = _random(3, 2, 4)
    layer = Mlp(4, 8)
    params = _init(layer, x)
    hidden = np.asarray(x @ params["up"]["kernel"] + params["up"]["bias"], np.float64)
    # the tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415)
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    expected = hidden @ np.asarray(params["down"]["kernel"]) + params["down"]["bias"]
    np.testing.assert_allclose(_apply(layer, params, x), expected, atol=1e-5)


@pytest.mark.parametrize("numerics", NUMERICS.values(), ids=NUMERICS)
def test_head_gives_float32_and_makes_padding_impossible(numerics):
    layer = Head(4, vocab=5, padded_vocab=8, numerics=numerics)
    hidden = _random(4, 3, 4).astype(numerics.dtype)
    params = _init(layer, hidden)
    params["linear"]["kernel"] = _random(5, 4, 8)
    logits = np.asarray(_apply(layer, params, hidden))
    assert logits.dtype == np.float32
    assert (logits[:, 5:] == NEG_INFINITY).all()
    assert (np.abs(logits[:, :5]) < 100).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_the_gradient_of_a_spread_vector_is_summed_over_texts_and_positions_at_once(batch):
    """Also over the axis of a single text, without which a CPU sums slowly. Oracles: NumPy, the program."""
    x, weights = _random(0, batch, 5, 3), _random(1, batch, 5, 3)

    def weighted(vector):
        return (weights * x * spread(vector, x)).sum()

    gradient = jax.grad(weighted)
    np.testing.assert_allclose(
        gradient(_random(2, 3)), (weights * x).sum(axis=(0, 1)), rtol=1e-5, atol=1e-6
    )
    assert "reduce_sum[axes=(0, 1)" in str(jax.make_jaxpr(gradient)(_random(2, 3)))


def test_vectors_of_each_text_are_spread_by_broadcasting():
    vectors = _random(0, 2, 1, 3)
    assert spread(vectors, _random(1, 2, 5, 3)) is vectors
