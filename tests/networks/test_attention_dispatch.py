"""The form of attention by platform and mesh. Oracle: the plain form, differentiated by JAX."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.networks.attention import (
    attend,
    attend_rotated,
    dispatch,
    kernels,
    rotary_tables,
)
from tests.networks.plain import attend_plainly

LONG = (1, dispatch.LENGTH_BY_HEAD, 2, 64)


def _arrays(shape, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(4)]


def _loss(query, key, value, gradient, causal=False, segments=None):
    return (attend(query, key, value, causal=causal, segments=segments) * gradient).sum()


GRADIENT = jax.grad(_loss, argnums=(0, 1, 2))


def _lowered(function, arrays, *platforms):
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=platforms).as_text()


# A text across the border of two blocks, and padding.
SEGMENTS = np.tile(np.repeat([0, 1, -1], [100, 120, 36]), (2, 1)).astype(np.int32)


@pytest.mark.parametrize(("causal", "segments"), [(False, None), (True, None), (False, SEGMENTS)])
def test_splash_attention_equals_the_plain_form(causal, segments):
    """In Pallas' interpreter; two blocks of 128 rows, so that sums over blocks are tested."""
    *inputs, gradient = _arrays((2, 256, 2, 64))
    splash = functools.partial(
        kernels.forward_splash, causal=causal, segments=segments, interpret=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "SPLASH_BLOCK", 128)
        mixed, lse = jax.jit(splash)(*inputs)
        grads = jax.jit(functools.partial(kernels.backward_splash, causal=causal, interpret=True))(
            kernels.Saved(*inputs, mixed, lse, segments), gradient
        )

    @jax.jit
    def plain(*inputs):
        form = functools.partial(attend_plainly, causal=causal, segments=segments)
        mixed, pull_back = jax.vjp(form, *inputs)
        return mixed, pull_back(gradient), kernels.forward_at_once(*inputs, causal, segments)[1]

    expected, expected_grads, same = plain(*inputs)
    np.testing.assert_allclose(mixed, expected, atol=2e-6)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(lse, same, atol=2e-6)


def test_attention_works_without_jit():
    arrays = _arrays((1, 8, 1, 4))
    expected = jax.jit(GRADIENT)(*arrays)
    with jax.disable_jit():
        found = GRADIENT(*arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("function", [_loss, GRADIENT], ids=["value", "gradient"])
def test_lowering_for_a_tpu_takes_splash_attention_wherever_it_is_traced(function):
    arrays = _arrays(LONG, jnp.bfloat16)
    assert "tpu_custom_call" in _lowered(function, arrays, "tpu")
    assert "tpu_custom_call" not in _lowered(function, arrays, "cpu")
    assert "tpu_custom_call" not in _lowered(function, arrays, "cuda")


def test_the_cpu_never_holds_the_scores_of_two_heads_of_a_long_sequence():
    arrays, scores = _arrays(LONG), f"2x{dispatch.LENGTH_BY_HEAD}x{dispatch.LENGTH_BY_HEAD}x"
    assert scores not in _lowered(GRADIENT, arrays, "cpu")
    assert scores in _lowered(GRADIENT, arrays, "rocm")


def test_one_export_serves_several_platforms():
    exported = jax.export.export(jax.jit(_loss), platforms=("cpu", "tpu"))(*_arrays(LONG))
    expected = jax.jit(_loss)(*_arrays(LONG))
    np.testing.assert_allclose(exported.call(*_arrays(LONG)), expected, rtol=1e-4)
    assert "tpu_custom_call" in exported.mlir_module()


@pytest.mark.parametrize("shape", [(2, 129, 2, 8), (2, 64, 4, 32)])
def test_other_lengths_have_one_form_on_every_platform(shape):
    for platform in ("cpu", "cuda", "tpu"):
        assert dispatch.form(platform, shape, jnp.dtype("float32")) == "at_once"
    arrays = _arrays(shape)
    assert "tpu_custom_call" not in _lowered(GRADIENT, arrays, "tpu")


@pytest.mark.parametrize(
    ("shape", "dtype", "takes"),
    [
        ((1, 1024, 12, 64), "bfloat16", True),
        ((1, 1000, 12, 64), "bfloat16", True),
        ((1, 1024, 12, 64), "float32", False),
        ((1, 1024, 12, 256), "bfloat16", False),
        ((1, 1024, 12, 20), "bfloat16", False),
    ],
)
def test_cudnn_takes_16_bits_and_heads_of_at_most_128(shape, dtype, takes):
    assert kernels.cudnn_takes(shape, jnp.dtype(dtype)) is takes


def test_without_cudnn_cuda_takes_all_heads_at_once(monkeypatch):
    shape, dtype = (1, 1024, 12, 64), jnp.dtype("bfloat16")
    for here, expected in ((False, "at_once"), (True, "cudnn")):
        monkeypatch.setattr(kernels, "cudnn_is_here", lambda here=here: here)
        assert dispatch.form("cuda", shape, dtype) == expected
    # cuDNN has no segments; the CPU and the TPU have other forms with segments.
    forms = {at: dispatch.form(at, shape, dtype, segmented=True) for at in dispatch.PLATFORMS}
    assert forms == {"cpu": "by_head", "cuda": "at_once", "tpu": "splash"}


@pytest.mark.parametrize("causal", [False, True])
def test_a_gradient_with_cudnn_is_one_pass_forward_and_one_backward(causal, monkeypatch):
    """Lowered for CUDA on any host; JAX from 0.11 on cannot lower its own wrapper of cuDNN there."""
    monkeypatch.setattr(kernels, "cudnn_is_here", lambda: True)
    arrays = _arrays((1, 256, 2, 64), jnp.bfloat16)
    text = _lowered(
        jax.grad(functools.partial(_loss, causal=causal), argnums=(0, 1, 2)), arrays, "cuda"
    )
    calls = re.findall(r"@(__cudnn\$fmha\w+)", text)
    assert sorted(calls) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert text.count("NO_MASK" if not causal else "CAUSAL") == 2


def _packed_loss(query, key, value, gradient):
    tables = rotary_tables(jnp.arange(query.shape[1]), query.shape[3])
    qkv = jnp.stack([query, key, value], axis=2)
    mixed = attend_rotated(qkv.reshape(*qkv.shape[:3], -1), *tables)
    return (mixed.reshape(gradient.shape) * gradient).sum()


@pytest.mark.parametrize("loss", [_loss, _packed_loss])
@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_products_are_as_precise_as_the_function_asks_for(loss, platform):
    """By default a GPU rounds float32 to 11 bits; the gradient is taken outside of the context."""

    def precise(*arrays):
        with jax.default_matmul_precision("highest"):
            return loss(*arrays)

    for function, least in ((precise, 2), (jax.grad(precise, argnums=(0, 1, 2)), 7)):
        text = _lowered(function, _arrays((1, 16, 2, 8)), platform)
        products = re.findall(r"dot_general.*", text)
        assert len(products) >= least
        assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)
    narrow = _lowered(precise, _arrays((1, 16, 2, 8), jnp.bfloat16), platform)
    assert "HIGHEST" not in narrow


@pytest.mark.parametrize("length", [16, dispatch.LENGTH_BY_HEAD])
def test_mapping_over_a_further_axis_equals_a_loop(length):
    arrays = _arrays((3, 2, length, 2, 8))
    shared = [arrays[0], arrays[1][0], *arrays[2:]]
    mapped, one_by_one = jax.vmap(GRADIENT, in_axes=(0, None, 0, 0)), jax.jit(GRADIENT)
    mapped = jax.device_get(jax.jit(mapped)(*shared))
    for i in range(3):
        single = one_by_one(arrays[0][i], arrays[1][0], arrays[2][i], arrays[3][i])
        for one, other in zip(mapped, single, strict=True):
            np.testing.assert_allclose(one[i], other, atol=1e-6)
