"""Attention of rotated queries and keys. Oracle: rotation and attention as defined.

The TPU's kernel runs in Pallas' interpreter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.networks.attention import (
    attend_rotated,
    packed_kernel,
    plain_attention,
    rotary_tables,
    rotate,
)


def _arrays(batch, length, heads, head_dim, dtype=jnp.float32):
    features, rng = heads * head_dim, np.random.default_rng(0)
    qkv = rng.standard_normal((batch, length, 3, features), np.float32).astype(dtype)
    gradient = rng.standard_normal((batch, length, features), np.float32).astype(dtype)
    return qkv, rotary_tables(np.arange(length), head_dim), gradient


def _with_gradient(function, qkv, gradient):
    """The value, and the pull-back of a gradient."""

    @jax.jit
    def both(qkv, gradient):
        mixed, pull_back = jax.vjp(function, qkv)
        return mixed, *pull_back(gradient)

    return jax.device_get(both(qkv, gradient))


def _plain(qkv, cos, sin, segments=None):
    heads = qkv.reshape(*qkv.shape[:3], -1, 2 * cos.shape[1])
    query, key, value = (heads[:, :, i] for i in range(3))
    heads_first = (
        jnp.swapaxes(x, 1, 2) for x in (rotate(query, cos, sin), rotate(key, cos, sin), value)
    )
    seen = None if segments is None else (segments[:, None] == segments[:, :, None])[:, None]
    mixed = jnp.swapaxes(plain_attention(*heads_first, seen), 1, 2)
    return mixed.reshape(*qkv.shape[:2], -1)


def _loss(qkv, cos, sin, gradient, segments=None):
    return (attend_rotated(qkv, cos, sin, segments) * gradient).sum()


def _lowered(function, qkv, tables, gradient, platform):
    traced = jax.jit(function).trace(qkv, *tables, gradient)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("shape", [(2, 16, 3, 8), (1, 512, 2, 8)], ids=["at_once", "by_head"])
def test_values_and_gradients_equal_rotation_and_plain_attention(shape, segmented):
    qkv, tables, gradient = _arrays(*shape)
    segments = np.tile(np.arange(shape[1]) // 7, (shape[0], 1)) if segmented else None
    ours = _with_gradient(lambda x: attend_rotated(x, *tables, segments), qkv, gradient)
    plain = _with_gradient(lambda x: _plain(x, *tables, segments), qkv, gradient)
    np.testing.assert_allclose(ours[0], plain[0], atol=2e-6)
    np.testing.assert_allclose(ours[1], plain[1], atol=5e-6)


def _kernel(qkv, tables, gradient):
    mixed, lse = packed_kernel.forward_packed(qkv, *tables, interpret=True)
    return mixed, packed_kernel.backward_packed(qkv, *tables, mixed, lse, gradient, interpret=True)


@pytest.mark.parametrize("shape", [(2, 256, 4, 64), (1, 256, 4, 96)], ids=["64", "96"])
def test_the_kernel_equals_the_plain_form(shape, monkeypatch):
    """Strips of two heads and of four; two turns of 128 queries."""
    monkeypatch.setattr(packed_kernel, "ROWS", 128)
    qkv, tables, gradient = _arrays(*shape)
    ours = jax.jit(_kernel)(qkv, tables, gradient)
    plain = _with_gradient(lambda x: _plain(x, *tables), qkv, gradient)
    np.testing.assert_allclose(ours[0], plain[0], atol=2e-6)
    np.testing.assert_allclose(ours[1], plain[1], atol=5e-6)


def test_the_kernel_rounds_no_more_than_the_other_forms():
    """bfloat16, one head of 128: its mean error from float32 beside that of `rotate` and `attend`."""
    qkv, tables, gradient = _arrays(1, 128, 1, 128, jnp.bfloat16)
    found = jax.device_get(jax.jit(_kernel)(qkv, tables, gradient))
    others = functools.partial(_with_gradient, lambda x: attend_rotated(x, *tables))
    exact = others(qkv.astype(np.float32), gradient.astype(np.float32))
    for one, other, true in zip(found, others(qkv, gradient), exact, strict=True):
        assert one.dtype == jnp.bfloat16
        errors = [np.abs(x.astype(np.float32) - true).mean() for x in (one, other)]
        assert errors[0] <= 1.1 * errors[1]


@pytest.mark.parametrize("function", [_loss, jax.grad(_loss)], ids=["value", "gradient"])
def test_a_tpu_takes_the_kernel(function):
    arrays = _arrays(1, 256, 2, 64, jnp.bfloat16)
    assert packed_kernel.FORWARD in _lowered(function, *arrays, "tpu")
    for platform in ("cpu", "cuda"):
        assert packed_kernel.FORWARD not in _lowered(function, *arrays, platform)
    # The kernel has no segments; splash attention does.
    segmented = functools.partial(function, segments=np.zeros((1, 256), np.int32))
    text = _lowered(segmented, *arrays, "tpu")
    assert packed_kernel.FORWARD not in text
    assert "tpu_custom_call" in text


@pytest.mark.parametrize(
    ("shape", "dtype", "takes"),
    [
        ((1, 1024, 12, 64), "bfloat16", True),
        ((1, 1024, 16, 96), "bfloat16", True),
        ((1, 2048, 12, 64), "bfloat16", True),
        ((1, 2048, 16, 96), "bfloat16", False),  # a strip of 2048 x 384 does not fit
        ((1, 4096, 12, 64), "bfloat16", False),
        ((1, 1000, 12, 64), "bfloat16", False),
        ((1, 1024, 11, 64), "bfloat16", False),  # half a strip is left over
        ((1, 1024, 12, 64), "float32", False),
    ],
)
def test_the_kernel_takes_whole_strips_that_fit(shape, dtype, takes):
    assert packed_kernel.packed_takes(shape, jnp.dtype(dtype)) is takes


def test_mapping_over_a_further_axis_equals_a_loop():
    qkv, tables, gradient = _arrays(4, 16, 2, 8)
    qkv, gradient = (x.reshape(2, 2, *x.shape[1:]) for x in (qkv, gradient))
    gradient_of = jax.jit(jax.grad(_loss))
    mapped = jax.jit(jax.vmap(gradient_of, in_axes=(0, None, None, 0)))(qkv, *tables, gradient)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], gradient_of(qkv[i], *tables, gradient[i]), atol=1e-6)
