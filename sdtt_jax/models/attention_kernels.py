"""Attention on one device, by platform: forward with its log-sum-exp, and backward from it.

Each form comes as two functions of arrays on one device:

    forward(query, key, value, causal) -> (mixed, lse)
    backward(query, key, value, mixed, lse, gradient, causal) -> (d_query, d_key, d_value)

`query`, `key`, `value`, `mixed` and `gradient` are `[batch, length, heads, head_dim]` of one dtype, `lse` is
`[batch, heads, length]`, the logarithm of each softmax's denominator, in float32 (float64 for float64).
With it the backward pass recomputes the probabilities block by block; none stores them.
"""

import jax
import jax.numpy as jnp

# From this length on the CPU takes one head after the other. Forward with backward, ms of CPU time on two
# cores, float32, all heads at once against head by head: 330 and 224 at length 1024 (12 heads of 64), 34
# and 31 at 256 (4 × 8 heads of 32), 20 and 25 at 64 (64 × 4 heads of 32).
LENGTH_BY_HEAD = 512

Grads = tuple[jax.Array, jax.Array, jax.Array]


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """The form for the platform that this is lowered for."""
    if query.shape[1] >= LENGTH_BY_HEAD:
        return forward_by_head(query, key, value, causal)
    return forward_at_once(query, key, value, causal)


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mixed: jax.Array,
    lse: jax.Array,
    gradient: jax.Array,
    causal: bool,
) -> Grads:
    """The form for the platform that this is lowered for."""
    arrays = (query, key, value, mixed, lse, gradient)
    if query.shape[1] >= LENGTH_BY_HEAD:
        return backward_by_head(*arrays, causal)
    return backward_at_once(*arrays, causal)


# --- All heads at once: three plain batched matmuls, which any compiler can split over devices.


def forward_at_once(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """Scores of all heads in one array `[batch, heads, length, length]`."""
    # Heads first: on CPU at batch 64, length 64, 4 heads of 32 the forward pass takes 4.6 ms, against
    # 25 ms with the heads left in third place.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query * _scale(query), key, value))
    scores = _einsum("bhqd,bhkd->bhqk", query, key)
    unscaled, total, lse = _softmax(scores, causal)
    mixed = _einsum("bhqk,bhkd->bhqd", unscaled.astype(value.dtype), value) / total
    return jnp.swapaxes(mixed, 1, 2).astype(value.dtype), lse


def backward_at_once(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mixed: jax.Array,
    lse: jax.Array,
    gradient: jax.Array,
    causal: bool,
) -> Grads:
    """The gradient of `forward_at_once`."""
    dtype, scale = query.dtype, _scale(query)
    delta = _row_products(mixed, gradient)
    query, key, value, gradient = (
        jnp.swapaxes(x, 1, 2) for x in (query * scale, key, value, gradient)
    )
    scores = _einsum("bhqd,bhkd->bhqk", query, key)
    weights = jnp.exp(_visible(scores, causal) - lse[..., None])
    d_value = _einsum("bhqk,bhqd->bhkd", weights.astype(dtype), gradient)
    d_weights = _einsum("bhqd,bhkd->bhqk", gradient, value)
    d_scores = (weights * (d_weights - delta[..., None])).astype(dtype)
    d_query = _einsum("bhqk,bhkd->bhqd", d_scores, key) * scale
    d_key = _einsum("bhqk,bhqd->bhkd", d_scores, query)
    return _results(dtype, d_query, d_key, d_value)


# --- One head after the other: its [length, length] scores stay in the cache.
#
# Features come first, `[head_dim, length]`, so that no product has to gather columns of a [length, length]
# matrix: `weights.T @ gradient` took 84 ms where `gradient.T @ weights` takes 29 (12 heads of 64, length
# 1024, ms of CPU time; at the rate of a large matmul it would be 25).


def forward_by_head(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """Scores of one head at a time, `[length, length]`."""
    batch, length, heads, head_dim = query.shape

    def one(head: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, key, value = head
        unscaled, total, lse = _softmax(_dot(query, key, 0, 0), causal)
        # Divided after the product: [length, head_dim] values instead of [length, length].
        return (_dot(unscaled.astype(value.dtype), value, 1, 1) / total).astype(value.dtype), lse

    operands = tuple(_features_first(x) for x in (query * _scale(query), key, value))
    mixed, lse = jax.lax.map(one, operands)
    mixed = jnp.swapaxes(mixed.reshape(batch, heads, length, head_dim), 1, 2)
    return mixed, lse.reshape(batch, heads, length)


def backward_by_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mixed: jax.Array,
    lse: jax.Array,
    gradient: jax.Array,
    causal: bool,
) -> Grads:
    """The gradient of `forward_by_head`."""
    batch, length, heads, head_dim = query.shape
    dtype, scale = query.dtype, _scale(query)
    rows = tuple(x.reshape(-1, length) for x in (lse, _row_products(mixed, gradient)))

    def one(head: tuple[jax.Array, ...]) -> Grads:
        query, key, value, gradient, lse, delta = head
        weights = jnp.exp(_visible(_dot(query, key, 0, 0), causal) - lse[:, None])
        d_value = _dot(gradient, weights.astype(dtype), 1, 0)
        d_weights = _dot(gradient, value, 0, 0)
        d_scores = (weights * (d_weights - delta[:, None])).astype(dtype)
        d_query = _dot(key, d_scores, 1, 1) * scale
        return d_query, _dot(query, d_scores, 1, 0), d_value

    operands = tuple(_features_first(x) for x in (query * scale, key, value, gradient))
    grads = jax.lax.map(one, (*operands, *rows))
    shape = (batch, heads, head_dim, length)
    d_query, d_key, d_value = (jnp.swapaxes(x.reshape(shape), 2, 3) for x in grads)
    return _results(dtype, d_query, d_key, d_value)


def _scale(query: jax.Array) -> float:
    return query.shape[-1] ** -0.5


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of scores and sums: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The matrix product over one axis of each, summed in `_wide`."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=_wide(left.dtype))


def _einsum(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(formula, left, right, preferred_element_type=_wide(left.dtype))


def _visible(scores: jax.Array, causal: bool) -> jax.Array:
    """`scores` with those of later positions made impossible, if `causal`."""
    if not causal:
        return scores
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], i) for i in (0, 1))
    return jnp.where(columns <= rows, scores, jnp.finfo(scores.dtype).min)


def _softmax(scores: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Softmax over the last axis as `unscaled / total`, and the log-sum-exp without that axis."""
    scores = _visible(scores, causal)
    largest = scores.max(axis=-1, keepdims=True)
    unscaled = jnp.exp(scores - largest)
    total = unscaled.sum(axis=-1, keepdims=True)
    return unscaled, total, (largest + jnp.log(total))[..., 0]


def _row_products(mixed: jax.Array, gradient: jax.Array) -> jax.Array:
    """`[batch, heads, length]`: what the softmax's gradient subtracts, the row sums of W · dW."""
    wide = _wide(mixed.dtype)
    return jnp.swapaxes((mixed.astype(wide) * gradient.astype(wide)).sum(axis=-1), 1, 2)


def _features_first(x: jax.Array) -> jax.Array:
    """`[batch, length, heads, head_dim]` → `[batch * heads, head_dim, length]`."""
    batch, length, heads, head_dim = x.shape
    return x.transpose(0, 2, 3, 1).reshape(batch * heads, head_dim, length)


def _results(dtype: jnp.dtype, *grads: jax.Array) -> Grads:
    """Gradients `[batch, heads, length, head_dim]` in the layout and dtype of the arguments."""
    d_query, d_key, d_value = (jnp.swapaxes(x, 1, 2).astype(dtype) for x in grads)
    return d_query, d_key, d_value
