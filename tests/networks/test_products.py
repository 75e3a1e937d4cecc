"""Products with gradients of their own. Oracle: NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.networks.products import WIDE, biased, widened_product


@pytest.mark.parametrize("columns", [5, WIDE])
def test_the_gradient_of_a_bias_is_the_sum_over_all_rows(columns):
    """For rows as wide as a vocabulary, a CPU multiplies by ones instead."""
    gradient = np.random.default_rng(0).standard_normal((2, 3, columns)).astype(np.float32)
    y, bias = np.zeros((2, 3, columns), np.float32), np.ones(columns, np.float32)

    @jax.jit
    def both(y, bias, gradient):
        found, pull_back = jax.vjp(biased, y, bias)
        return found, *pull_back(gradient)

    found, d_y, d_bias = both(y, bias, gradient)
    np.testing.assert_array_equal(found, np.ones((2, 3, columns)))
    np.testing.assert_array_equal(d_y, gradient)
    np.testing.assert_allclose(d_bias, gradient.sum((0, 1), dtype=np.float64), rtol=1e-5, atol=1e-5)


def _both(rows, kernel, gradient, products):
    found, pull_back = jax.vjp(lambda r, k: widened_product(r, k, products), rows, kernel)
    return found, *pull_back(gradient)


@pytest.mark.parametrize("rows_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kernel_dtype", [jnp.float32, jnp.bfloat16])
def test_a_widened_product_is_added_up_in_float32_and_gives_each_gradient_in_its_own_dtype(
    rows_dtype, kernel_dtype
):
    """Whole numbers that bfloat16 holds exactly, while their sums beyond 256 are exact only in float32."""
    draw = np.random.default_rng(0).integers
    rows, kernel = draw(0, 9, (300, 4)), draw(0, 9, (4, 2, 3))
    weights = draw(0, 2, (300, 2, 3))
    arrays = (
        jnp.asarray(rows, rows_dtype),
        jnp.asarray(kernel, kernel_dtype),
        jnp.asarray(weights, jnp.float32),
    )
    found, d_rows, d_kernel = jax.jit(_both, static_argnums=3)(*arrays, "bfloat16")
    assert (found.dtype, d_rows.dtype, d_kernel.dtype) == (jnp.float32, rows_dtype, kernel_dtype)
    exact = np.einsum("ni,iab->nab", rows, kernel)
    np.testing.assert_array_equal(found, exact)
    d_exact = np.einsum("ni,nab->iab", rows, weights)
    assert d_exact.min() > 256
    np.testing.assert_array_equal(d_kernel, d_exact.astype(kernel_dtype))
    passed = np.einsum("nab,iab->ni", weights, kernel)
    np.testing.assert_array_equal(d_rows, passed.astype(rows_dtype))


@pytest.mark.parametrize("rows_dtype", [jnp.float32, jnp.bfloat16])
def test_a_kernel_that_is_a_transposed_table_passes_its_gradient_on(rows_dtype):
    """As a tied head's kernel. Whole numbers, as above."""
    draw = np.random.default_rng(0).integers
    rows, table, weights = draw(0, 9, (300, 4)), draw(0, 9, (6, 4)), draw(0, 2, (300, 6))

    @jax.jit
    def gradients(rows, table):
        def total(rows, table):
            return (widened_product(rows, table.T, "bfloat16") * weights).sum()

        return jax.grad(total, argnums=(0, 1))(rows, table)

    d_rows, d_table = gradients(jnp.asarray(rows, rows_dtype), jnp.asarray(table, jnp.float32))
    np.testing.assert_array_equal(d_table, weights.T @ rows)
    np.testing.assert_array_equal(d_rows, weights @ table)


def test_no_layout_is_forced_on_rows_that_a_mesh_splits():
    """Otherwise each device would gather all rows: the compiler cannot split a forced layout."""

    def gradient(rows, weights):
        kernel = jnp.ones((4, 3))
        return jax.vjp(lambda k: widened_product(rows, k, "bfloat16"), kernel)[1](weights)

    arrays = jnp.ones((8, 4)), jnp.ones((8, 3))
    assert "layout_constraint" in str(jax.make_jaxpr(gradient)(*arrays))
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    ):
        assert "layout_constraint" not in str(jax.make_jaxpr(gradient)(*arrays))
