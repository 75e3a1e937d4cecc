"""Attention and rotary position embeddings as pure functions, one form of attention for each platform.

It may use what networks may use; only networks use it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sdtt_jax.networks.attention import dispatch
from sdtt_jax.networks.attention.kernels import Grads, Saved

ROTARY_BASE = 10_000.0
ATTENTION = "attention"


def rotary_tables(positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for rotary embeddings (RoFormer, arXiv 2104.09864, half-rotation layout).

    Args:
      positions: `[length]` int32.
      head_dim: size of a head, even.

    Returns:
      `cos, sin`: `[length, head_dim // 2]` float32.
    """
    frequency = ROTARY_BASE ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions.astype(jnp.float32)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embeddings: turns the feature pairs `(i, i + head_dim / 2)` of each head.

    Args:
      x: `[batch, length, heads, head_dim]`, queries or keys.
      cos, sin: from `rotary_tables`.

    Returns:
      As `x`, in its dtype.
    """
    first, second = jnp.split(x, 2, axis=-1)
    across = jnp.concatenate([-second, first], axis=-1)
    cos, sin = (jnp.tile(table, 2)[:, None, :] for table in (cos, sin))
    return (x.astype(jnp.float32) * cos + across.astype(jnp.float32) * sin).astype(x.dtype)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False
) -> jax.Array:
    """Softmax attention, the softmax in float32 at least, in the form that suits the platform.

    Probabilities are never stored: a backward pass recomputes them, once, from the output and the
    log-sum-exp, which carry the name `ATTENTION` for a remat policy to save.

    Args:
      query, key, value: `[batch, length, heads, head_dim]`.
      causal: position i sees positions 0 … i only.

    Returns:
      `[batch, length, heads, head_dim]`, dtype of `value`.
    """
    return _attend(query, key, value, causal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    return dispatch.forward(query, key, value, causal)[0]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool
) -> tuple[jax.Array, Saved]:
    mixed, lse = dispatch.forward(query, key, value, causal)
    mixed, lse = saved_as(ATTENTION, mixed), checkpoint_name(lse, ATTENTION)
    return mixed, Saved(query, key, value, mixed, lse)


def _attend_backward(causal: bool, saved: Saved, gradient: jax.Array) -> Grads:
    return dispatch.backward(saved, gradient, causal)


_attend.defvjp(_attend_forward, _attend_backward)


def saved_as(name: str, x: jax.Array) -> jax.Array:
    """`x` with a name for remat policies, which then save it as `[..., embed]`.

    A TPU pads the last axis to 128 and the one before to 16: of 12 heads of 64 the saved array would be
    2.7 times as large.

    Args:
      name: that a policy asks for.
      x: `[..., heads, head_dim]`.
    """
    flat = x.reshape(*x.shape[:-2], -1)
    return checkpoint_name(flat, name).reshape(x.shape)


def plain_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Softmax attention as it is written down, for any mask; `attend` is tested against it.

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


def causal_mask(length: int) -> jax.Array:
    """`[length, length]` bool: position i sees positions 0 … i."""
    return jnp.tril(jnp.ones((length, length), dtype=bool))
