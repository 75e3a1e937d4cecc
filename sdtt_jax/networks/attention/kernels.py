"""Forms of attention: each a forward pass that returns its log-sum-exp, and a backward pass from it.

    forward_*(query, key, value, causal, segments) -> (mixed, lse)
    backward_*(saved, gradient, causal) -> (d_query, d_key, d_value)

`query`, `key`, `value`, `mixed` and `gradient` are `[batch, length, heads, head_dim]` of one dtype, `lse` is
`[batch, heads, length]`, the logarithm of each softmax's denominator, in float32 (float64 for float64).
With it the backward pass recomputes the probabilities; no form stores them. `segments: [batch, length]` int32
confines attention to positions with the same number; None confines nothing.
`sdtt_jax.networks.attention.dispatch` chooses among the forms.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Grads = tuple[Array, Array, Array]


class Saved(NamedTuple):
    """What a forward pass saves for the backward pass: its arguments and results."""

    query: Array
    key: Array
    value: Array
    mixed: Array
    lse: Array
    segments: Array | None = None


# --- All heads at once: three plain batched matmuls, which any compiler can split over devices.


def forward_at_once(
    query: Array, key: Array, value: Array, causal: bool, segments: Array | None = None
) -> tuple[Array, Array]:
    """Scores of all heads in one array `[batch, heads, length, length]`."""
    # Heads first: on CPU at batch 64, length 64, 4 heads of 32 the forward pass takes 4.6 ms, against
    # 25 ms with the heads left in third place.
    query, key, value = _heads_first(query * _scale(query), key, value)
    scores = _einsum("bhqd,bhkd->bhqk", query, key)
    unscaled, total, lse = _softmax(scores, causal, _of_all_heads(segments))
    mixed = _einsum("bhqk,bhkd->bhqd", unscaled.astype(value.dtype), value) / total
    return jnp.swapaxes(mixed, 1, 2).astype(value.dtype), lse


def backward_at_once(saved: Saved, gradient: Array, causal: bool) -> Grads:
    """The gradient of `forward_at_once`."""
    query, key, value, mixed, lse, segments = saved
    dtype, scale = query.dtype, _scale(query)
    delta = _row_products(mixed, gradient)
    query, key, value, gradient = _heads_first(query * scale, key, value, gradient)
    scores = _einsum("bhqd,bhkd->bhqk", query, key)
    weights = jnp.exp(_visible(scores, causal, _of_all_heads(segments)) - lse[..., None])
    d_value = _einsum("bhqk,bhqd->bhkd", weights.astype(dtype), gradient)
    d_weights = _einsum("bhqd,bhkd->bhqk", gradient, value)
    d_scores = (weights * (d_weights - delta[..., None])).astype(dtype)
    d_query = _einsum("bhqk,bhkd->bhqd", d_scores, key) * scale
    d_key = _einsum("bhqk,bhqd->bhkd", d_scores, query)
    return _results(dtype, d_query, d_key, d_value)


# --- One head after the other: its [length, length] scores stay in the cache.
#
# Each turn cuts its head out of the arrays. Laying them all out by head before the loop took 3 of 13 ms of a
# forward pass (rotation included, 12 heads of 64, length 1024, two CPU cores).


def forward_by_head(
    query: Array, key: Array, value: Array, causal: bool, segments: Array | None = None
) -> tuple[Array, Array]:
    """Scores of one head at a time, `[length, length]`."""
    batch, length, heads, _ = query.shape
    query = query * _scale(query)

    def one(turn: tuple[Any, ...]) -> tuple[Array, Array]:
        index, segments = turn
        own_query, own_key, own_value = (_of_head(x, index) for x in (query, key, value))
        unscaled, total, lse = _softmax(_dot(own_query, own_key, 1, 1), causal, segments)
        # Divided after the product: [length, head_dim] values instead of [length, length].
        mixed = _dot(unscaled.astype(value.dtype), own_value, 1, 0) / total
        return mixed.astype(value.dtype), lse

    mixed, lse = jax.lax.map(one, (_numbers(query), _of_each_head(segments, heads)))
    (mixed,) = _heads_first(mixed.reshape(batch, heads, length, -1))
    return mixed, lse.reshape(batch, heads, length)


def backward_by_head(saved: Saved, gradient: Array, causal: bool) -> Grads:
    """The gradient of `forward_by_head`, from scores `[keys, queries]`.

    So no product has to gather columns of a [length, length] matrix: `weights.T @ gradient` took 84 ms where
    `gradient.T @ weights` takes 29 (12 heads of 64, length 1024, ms of CPU time; at the rate of a large
    matmul it would be 25).
    """
    query, key, value, mixed, lse, segments = saved
    batch, length, heads, _ = query.shape
    dtype, scale = query.dtype, _scale(query)
    statistics = (x.reshape(-1, length) for x in (lse, _row_products(mixed, gradient)))
    query = query * scale

    def one(turn: tuple[Any, ...]) -> Grads:
        index, lse, delta, segments = turn
        own_query, own_key, own_value, own_gradient = (
            _of_head(x, index) for x in (query, key, value, gradient)
        )
        scores = _visible(_dot(own_key, own_query, 1, 1), causal, segments, keys_first=True)
        weights = jnp.exp(scores - lse)
        d_value = _dot(weights.astype(dtype), own_gradient, 1, 0)
        d_weights = _dot(own_value, own_gradient, 1, 1)
        d_scores = (weights * (d_weights - delta)).astype(dtype)
        d_query = _dot(own_key, d_scores, 0, 0) * scale
        return d_query, _dot(d_scores, own_query, 1, 0), d_value

    turns = (_numbers(query), *statistics, _of_each_head(segments, heads))
    d_query, d_key, d_value = jax.lax.map(one, turns)
    grads = (jnp.swapaxes(d_query, 1, 2), d_key, d_value)
    return _results(dtype, *(x.reshape(batch, heads, length, -1) for x in grads))


def _numbers(query: Array) -> Array:
    """The number of each head of each sequence of `query: [batch, length, heads, head_dim]`."""
    return jnp.arange(query.shape[0] * query.shape[2], dtype=jnp.int32)


def _of_head(x: Array, index: Array) -> Array:
    """`[length, head_dim]` of one head of one sequence of `x: [batch, length, heads, head_dim]`."""
    sequence, head = jnp.divmod(index, x.shape[2])
    of_sequence = jax.lax.dynamic_index_in_dim(x, sequence, keepdims=False)
    return jax.lax.dynamic_index_in_dim(of_sequence, head, axis=1, keepdims=False)


# --- Splash attention: JAX's Pallas kernel for TPU.

LANES = 128
# Rows and columns of a block, at most the length. Temporaries of a gradient, as the v5e compiler reports them
# (batch 32, 12 heads of 64, length 1024, bfloat16): 1309 MB at 128, 705 at 512, 604 at 1024. Blocks larger
# than 512 skip too little of a causal mask.
SPLASH_BLOCK = 512


def splash_takes(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether splash attention has a kernel for `[batch, length, heads, head_dim]` of `dtype`.

    Blocks are whole multiples of 128 positions, and divide the length.
    """
    return shape[1] % LANES == 0 and dtype in (jnp.bfloat16, jnp.float32)


def forward_splash(
    query: Array,
    key: Array,
    value: Array,
    causal: bool,
    segments: Array | None = None,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Blocks of scores in the fast memory of a TPU; `interpret` runs it anywhere, slowly."""
    kernel = _splash(query.shape, causal, save_residuals=True, interpret=interpret)
    query, key, value = _heads_first(query * _scale(query), key, value)
    mixed, (lse,) = jax.vmap(kernel)(query, key, value, _splash_segments(segments))
    return jnp.swapaxes(mixed, 1, 2), lse


def backward_splash(saved: Saved, gradient: Array, causal: bool, interpret: bool = False) -> Grads:
    """The gradient of `forward_splash`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    query, key, value, mixed, lse, segments = saved
    kernel = _splash(query.shape, causal, save_residuals=False, interpret=interpret)
    masks = (kernel.dq_mask_info, kernel.dkv_mask_info)
    dtype, scale = query.dtype, _scale(query)

    @jax.vmap
    def one(inputs: tuple[Any, ...], outputs: tuple[Array, ...], do: Array) -> Grads:
        # The kernel's own rule, by its private name (JAX 0.10 to 0.12 have it): differentiating the kernel
        # instead would run its forward pass once more, to get what is saved here already.
        grads = splash_attention_kernel._splash_attention_bwd(
            **kernel.kwargs, res=(*inputs, None, *outputs, *masks), do=do
        )
        return grads[3:6]

    inputs, (mixed, gradient) = (
        _heads_first(query * scale, key, value),
        _heads_first(mixed, gradient),
    )
    inputs = (*inputs, _splash_segments(segments))
    d_query, d_key, d_value = one(inputs, (mixed, lse), gradient)
    return _results(dtype, d_query * scale, d_key, d_value)


def _splash_segments(segments: Array | None) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return None if segments is None else splash_attention_kernel.SegmentIds(segments, segments)


def _splash(shape: tuple[int, ...], causal: bool, save_residuals: bool, interpret: bool) -> Any:
    """The kernel for one example: `[heads, length, head_dim]` each, the query scaled."""
    # Imported here, since importing Pallas takes longer than the rest of this package.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    _, length, heads, _ = shape
    block = next(b for b in range(min(SPLASH_BLOCK, length), 0, -LANES) if length % b == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
    )
    mask = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask((length, length))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        save_residuals=save_residuals,
        interpret=interpret,
    )


# --- cuDNN's flash attention.

CUDNN_LARGEST_HEAD = 128


def cudnn_takes(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether cuDNN has a kernel for `[batch, length, heads, head_dim]` of `dtype`.

    It knows 16-bit floats and heads of at most 128 features, a multiple of 8.
    """
    head_dim = shape[3]
    narrow = dtype in (jnp.bfloat16, jnp.float16)
    return narrow and head_dim <= CUDNN_LARGEST_HEAD and head_dim % 8 == 0


@functools.cache
def cudnn_is_here() -> bool:
    """Whether JAX's CUDA plugin is installed; without it JAX refuses to trace a cuDNN call."""
    x = jax.ShapeDtypeStruct((1, LANES, 1, 64), jnp.bfloat16)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attend, x, x, x)
    except RuntimeError:
        return False
    return True


def forward_cudnn(query: Array, key: Array, value: Array, causal: bool) -> tuple[Array, Array]:
    """cuDNN's kernel, with the statistics that its backward pass reads; it takes no segments."""
    cudnn, unused, options = _cudnn_call(query, causal)
    mixed, lse = cudnn._dot_product_attention_fwd_p.bind(
        query, key, value, *unused, **options, is_training=True
    )
    return mixed, lse


def backward_cudnn(saved: Saved, gradient: Array, causal: bool) -> Grads:
    """The gradient of `forward_cudnn`."""
    query, key, value, mixed, lse, _ = saved
    cudnn, unused, options = _cudnn_call(query, causal)
    d_query, d_key, d_value = cudnn._dot_product_attention_bwd_p.bind(
        query, key, value, *unused, lse, mixed, gradient, **options
    )
    return d_query, d_key, d_value


def _cudnn_call(query: Array, causal: bool) -> tuple[Any, list[Array], dict[str, Any]]:
    """JAX's module of cuDNN's primitives, the seven operands that are not used here, and the parameters.

    The primitives are called by their private names (JAX 0.10 to 0.12 have them).
    `jax.nn.dot_product_attention` wraps them in a custom partitioning, which cannot be lowered inside of the
    rule of another primitive (JAX 0.11 and later end in an AssertionError that asks for a bug report), and
    does not give the statistics in 32 bits, so that the backward pass would have to run the forward again.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    mask = cudnn.MaskType.CAUSAL if causal else cudnn.MaskType.NO_MASK
    options = {
        "scale": _scale(query),
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": mask,
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
    # New in JAX 0.12, and not needed here.
    known = inspect.signature(cudnn._dot_product_attention_fwd_cuda_lowering).parameters
    options |= {name: None for name in ("score_mod_name", "score_mod_jaxpr") if name in known}
    return cudnn, [jnp.zeros(0, query.dtype)] * 7, options


def _scale(query: Array) -> float:
    return query.shape[-1] ** -0.5


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of scores and sums: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """The matrix product over one axis of each, summed in `_wide`."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=_wide(left.dtype))


def _einsum(formula: str, left: Array, right: Array) -> Array:
    return jnp.einsum(formula, left, right, preferred_element_type=_wide(left.dtype))


def _of_all_heads(segments: Array | None) -> Array | None:
    """`[batch, length]` → `[batch, 1, length]`."""
    return None if segments is None else segments[:, None]


def _of_each_head(segments: Array | None, heads: int) -> Array | None:
    """`[batch, length]` → `[batch * heads, length]`."""
    return None if segments is None else jnp.repeat(segments, heads, axis=0)


def _visible(
    scores: Array, causal: bool, segments: Array | None, *, keys_first: bool = False
) -> Array:
    """`scores: [..., queries, keys]`, transposed if `keys_first`, with unseen keys made impossible.

    Unseen are later keys if `causal`, and keys of other segments if there are `segments: [..., length]`.
    """
    lowest = jnp.finfo(scores.dtype).min
    if causal:
        rows, columns = (jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], i) for i in (0, 1))
        seen = rows <= columns if keys_first else columns <= rows
        scores = jnp.where(seen, scores, lowest)
    if segments is not None:
        scores = jnp.where(segments[..., :, None] == segments[..., None, :], scores, lowest)
    return scores


def _softmax(scores: Array, causal: bool, segments: Array | None) -> tuple[Array, Array, Array]:
    """Softmax over the last axis as `unscaled / total`, and the log-sum-exp without that axis."""
    scores = _visible(scores, causal, segments)
    largest = scores.max(axis=-1, keepdims=True)
    unscaled = jnp.exp(scores - largest)
    total = unscaled.sum(axis=-1, keepdims=True)
    return unscaled, total, (largest + jnp.log(total))[..., 0]


def _row_products(mixed: Array, gradient: Array) -> Array:
    """`[batch, heads, length]`: what the softmax's gradient subtracts, the row sums of W · dW."""
    wide = _wide(mixed.dtype)
    return jnp.swapaxes((mixed.astype(wide) * gradient.astype(wide)).sum(axis=-1), 1, 2)


def _heads_first(*arrays: Array) -> tuple[Array, ...]:
    """`[batch, length, heads, head_dim]` → `[batch, heads, length, head_dim]`, each."""
    return tuple(jnp.swapaxes(x, 1, 2) for x in arrays)


def _results(dtype: jnp.dtype, *grads: Array) -> Grads:
    """Gradients `[batch, heads, length, head_dim]` in the layout and dtype of the arguments."""
    d_query, d_key, d_value = (x.astype(dtype) for x in _heads_first(*grads))
    return d_query, d_key, d_value
