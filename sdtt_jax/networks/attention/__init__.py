"""Attention and rotary position embeddings as pure functions, one form of attention for each platform.

It may use what networks may use. Apart from networks, only modules that name its forms or its layout use
it: `interchange.tables`, `launch.ahead` and `tools.accelerator`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from sdtt_jax.networks.attention import dispatch
from sdtt_jax.networks.attention.kernels import Saved
from sdtt_jax.networks.attention.rotary import rotary_tables as rotary_tables
from sdtt_jax.networks.attention.rotary import rotate as rotate
from sdtt_jax.networks.attention.rotary import rotate_neighbours as rotate_neighbours

ATTENTION = "attention"


def attend(
    query: Array, key: Array, value: Array, *, causal: bool = False, segments: Array | None = None
) -> Array:
    """Softmax attention, the softmax in float32 at least, in the form that suits the platform.

    Probabilities are never stored: a backward pass recomputes them, once, from the output and the
    log-sum-exp, which carry the name `ATTENTION` for a remat policy to save.

    Args:
      query: `[batch, length, heads, head_dim]`.
      key, value: `[batch, length, kv_heads, head_dim]`; each serves the next `heads / kv_heads` query heads.
      causal: position i sees positions 0 … i only.
      segments: `[batch, length]` int32; a position sees only those with its own number. None: it sees all.

    Returns:
      `[batch, length, heads, head_dim]`, dtype of `value`.
    """
    key, value = (_for_each_query(query, x) for x in (key, value))
    return _attend(query, key, value, segments, causal, dispatch.matmul_precision())


def attend_along(
    query: Array, key: Array, value: Array, edges: Array, segments: Array | None = None
) -> Array:
    """`attend` causally and along further edges, in one form for all platforms.

    Args:
      query: `[batch, length, heads, head_dim]`.
      key, value: `[batch, length, kv_heads, head_dim]`, as in `attend`.
      edges: `[batch, length, length]` bool; position i sees position j where they are True or j <= i.
      segments: as in `attend`.

    Returns:
      `[batch, length, heads, head_dim]`, dtype of `value`.
    """
    seen = edges | causal_mask(query.shape[1])
    if segments is not None:
        seen &= segments[:, :, None] == segments[:, None, :]
    key, value = (_for_each_query(query, x).swapaxes(1, 2) for x in (key, value))
    return plain_attention(query.swapaxes(1, 2), key, value, seen[:, None]).swapaxes(1, 2)


def _for_each_query(query: Array, x: Array) -> Array:
    """Keys or values, repeated for each query head; they are small compared with the scores."""
    group = query.shape[2] // x.shape[2]
    return x if group == 1 else jnp.repeat(x, group, axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    query: Array,
    key: Array,
    value: Array,
    segments: Array | None,
    causal: bool,
    precision: str | None,
) -> Array:
    """`precision` of matrix products is for the backward pass, which may be traced in another context."""
    del precision
    return dispatch.forward(query, key, value, segments, causal=causal)[0]


def _attend_forward(
    query: Array,
    key: Array,
    value: Array,
    segments: Array | None,
    causal: bool,
    _precision: str | None,
) -> tuple[Array, Saved]:
    mixed, lse = dispatch.forward(query, key, value, segments, causal=causal)
    # Saved as [batch, length, heads * head_dim], since a TPU pads the last axis to 128 and the one before to
    # 16: with 12 heads of 64 features the saved array would otherwise be 2.7 times as large.
    flat = checkpoint_name(mixed.reshape(*mixed.shape[:2], -1), ATTENTION)
    mixed, lse = flat.reshape(mixed.shape), checkpoint_name(lse, ATTENTION)
    return mixed, Saved(query, key, value, mixed, lse, segments)


def _attend_backward(
    causal: bool, precision: str | None, saved: Saved, gradient: Array
) -> tuple[Array, Array, Array, None]:
    with jax.default_matmul_precision(precision):
        arrays = (*saved[:5], gradient, saved.segments)
        return *dispatch.backward(*arrays, causal=causal), None


_attend.defvjp(_attend_forward, _attend_backward)


def attend_rotated(qkv: Array, cos: Array, sin: Array, segments: Array | None = None) -> Array:
    """`attend` of rotated queries and keys, from the result of one projection.

    On a TPU one kernel reads `qkv` as it lies in memory and rotates it; elsewhere `rotate` and `attend` run.

    Args:
      qkv: `[batch, length, 3, heads * head_dim]`: query, key and value.
      cos, sin: from `rotary_tables`; they tell the size of a head, and no gradient flows into them.
      segments: as in `attend`. Positions count on through all of them, since rotations change a product of
        query and key by their distance alone.

    Returns:
      `[batch, length, heads * head_dim]`, in the dtype of `qkv`.
    """
    return _attend_rotated(qkv, cos, sin, segments, dispatch.matmul_precision())


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend_rotated(
    qkv: Array, cos: Array, sin: Array, segments: Array | None, precision: str | None
) -> Array:
    del precision
    return dispatch.forward_rotated(qkv, cos, sin, segments)[0]


def _attend_rotated_forward(
    qkv: Array, cos: Array, sin: Array, segments: Array | None, _precision: str | None
) -> tuple[Array, tuple[Array | None, ...]]:
    mixed, lse = checkpoint_name(dispatch.forward_rotated(qkv, cos, sin, segments), ATTENTION)
    return mixed, (qkv, cos, sin, mixed, lse, segments)


def _attend_rotated_backward(
    precision: str | None, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, None, None, None]:
    *arrays, segments = saved
    with jax.default_matmul_precision(precision):
        return *dispatch.backward_rotated(*arrays, gradient, segments), None, None, None


_attend_rotated.defvjp(_attend_rotated_forward, _attend_rotated_backward)


def plain_attention(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """Softmax attention by its definition, for any mask; `attend` is tested against it.

    Args:
      query: `[batch, heads, q_length, head_dim]`.
      key, value: `[batch, heads, kv_length, head_dim]`.
      mask: bool, broadcastable to `[batch, heads, q_length, kv_length]`; False entries are not attended
        to. A row without a True entry attends evenly.

    Returns:
      `[batch, heads, q_length, head_dim]`, dtype of `value`.
    """
    wide = jnp.promote_types(value.dtype, jnp.float32)
    scaled = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bhqd,bhkd->bhqk", scaled, key, preferred_element_type=wide)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)


def causal_mask(length: int) -> Array:
    """`[length, length]` bool: position i sees positions 0 … i."""
    return jnp.tril(jnp.ones((length, length), dtype=bool))
