"""The operations of linear layers and embeddings, with custom gradients: narrower, or faster than JAX's."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from sdtt_jax.parallel.mesh import free_axes, vary_alike

# From this many columns on, the gradient of a bias is a matrix product.
WIDE = 8192


def widened_product(rows: jax.Array, kernel: jax.Array, products: DTypeLike) -> jax.Array:
    """`rows @ kernel`, both rounded to `products`, added up and returned in float32.

    The gradient's products multiply numbers just as narrow. Left to JAX, they would be products in float32,
    which cost a GPU twice the time and the memory traffic. The gradient of the kernel is never rounded, since
    it is summed over many pieces.

    Args:
      rows: `[n, in]`, bfloat16 or float32.
      kernel: `[in, …]`, say float32.
      products: a dtype, say bfloat16.
    """
    return _widened_product(*vary_alike(rows, kernel), products)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _widened_product(rows: jax.Array, kernel: jax.Array, products: DTypeLike) -> jax.Array:
    return _widened_forward(rows, kernel, products)[0]


def _widened_forward(
    rows: jax.Array, kernel: jax.Array, products: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    narrow = rows.astype(products)
    # Of the rows before rounding, the backward pass needs only the dtype.
    saved = (narrow, kernel, jnp.zeros(0, rows.dtype))
    return _widened(narrow, kernel.astype(products), (1,), (0,)), saved


def _widened_backward(
    products: DTypeLike, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, kernel, like_rows = saved
    narrow, results = gradient.astype(products), tuple(range(1, gradient.ndim))
    d_rows = _widened(narrow, kernel.astype(products), results, results)
    d_kernel = _summed_over_rows(rows, narrow)
    return d_rows.astype(like_rows.dtype), d_kernel.astype(kernel.dtype)


def _summed_over_rows(rows: jax.Array, gradient: jax.Array) -> jax.Array:
    """`rows.T @ gradient`, summed in float32."""

    def plain(rows: jax.Array, gradient: jax.Array) -> jax.Array:
        return _widened(rows, gradient, (0,), (0,))

    def transposed(rows: jax.Array, gradient: jax.Array) -> jax.Array:
        # The layout is forced: XLA would leave the rows as they lie in memory and, having no product of
        # columns, widen both factors (1024 rows of 768 by 3072: 22 ms, 11 with the layout, 20 in float32).
        columns = with_layout_constraint(rows.T, Layout((0, 1)))
        product = _widened(columns, gradient.reshape(len(gradient), -1), (1,), (0,))
        # If the result is transposed, as a tied head's is, XLA would otherwise swap the factors and ask for
        # the product of columns after all.
        product = jax.lax.optimization_barrier(product)
        return product.reshape(rows.shape[1], *gradient.shape[1:])

    def wide(rows: jax.Array, gradient: jax.Array) -> jax.Array:
        # XLA widens by itself if `gradient` is a matrix. If it has more axes, XLA counts on a product of
        # bfloat16 columns, which it does not have, and the program fails when it runs.
        return plain(rows.astype(jnp.float32), gradient.astype(jnp.float32))

    if rows.dtype != jnp.bfloat16:
        return plain(rows, gradient)
    # Over several devices, the layout would make each of them gather all rows.
    alone = math.prod(free_axes().values()) == 1
    cpu = transposed if alone else wide
    return jax.lax.platform_dependent(rows, gradient, cpu=cpu, default=plain)


def _widened(
    left: jax.Array, right: jax.Array, left_axes: tuple[int, ...], right_axes: tuple[int, ...]
) -> jax.Array:
    axes = ((left_axes, right_axes), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


_widened_product.defvjp(_widened_forward, _widened_backward)


def biased(y: jax.Array, bias: jax.Array) -> jax.Array:
    """`y + bias`, with a gradient that is fast for rows as wide as a vocabulary.

    Args:
      y: `[..., out]`.
      bias: `[out]`, of a dtype at least as wide as that of `y`.
    """
    return _biased(*vary_alike(y, bias))


@jax.custom_vjp
def _biased(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias.astype(y.dtype)


def _biased_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _biased(y, bias), bias


def _biased_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = gradient.reshape(-1, *bias.shape)
    if bias.size < WIDE or rows.dtype != jnp.float32:
        return gradient, rows.sum(axis=0).astype(bias.dtype)
    # XLA's CPU backend (YNNPACK) adds up column by column: 168 rows of 50,304 take 76 ms of CPU time, but 3
    # as a product with ones.
    total = jax.lax.platform_dependent(
        rows, cpu=lambda x: (jnp.ones((1, len(x)), x.dtype) @ x)[0], default=lambda x: x.sum(axis=0)
    )
    return gradient, total.astype(bias.dtype)


_biased.defvjp(_biased_forward, _biased_backward)


def looked_up(table: jax.Array, tokens: jax.Array, dtype: DTypeLike, axis: str | None) -> jax.Array:
    """`table.astype(dtype)[tokens]`, with a gradient that is summed in the dtype of the table.

    Half of a batch may be MASK: a sum of that many bfloat16 numbers in bfloat16 stops growing at 256 of them.

    Args:
      table: `[rows, embed]`.
      tokens: integers of any shape.
      dtype: dtype of the result.
      axis: the logical name of the table's first axis.
    """
    return _looked_up(*vary_alike(table, tokens), dtype, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _looked_up(
    table: jax.Array, tokens: jax.Array, dtype: DTypeLike, axis: str | None
) -> jax.Array:
    # Under fsdp a row is split: it is gathered here, before rows are looked up. Left alone, the compiler
    # looks up pieces of rows, and to spread those over the batch it copies all of them everywhere.
    return nn.with_logical_constraint(table.astype(dtype), (axis, None))[tokens]


def _looked_up_forward(
    table: jax.Array, tokens: jax.Array, dtype: DTypeLike, axis: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _looked_up(table, tokens, dtype, axis), (table, tokens)


def _looked_up_backward(
    dtype: DTypeLike, axis: str | None, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    del dtype
    table, tokens = saved  # of the table, only shape and dtype are used
    zeros = nn.with_logical_constraint(jnp.zeros_like(table), (axis, None))
    return zeros.at[tokens].add(gradient.astype(table.dtype)), None


_looked_up.defvjp(_looked_up_forward, _looked_up_backward)
