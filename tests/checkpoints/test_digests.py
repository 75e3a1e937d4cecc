"""Digests: the same for the same numbers wherever they lie, different for any others."""

import hashlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.checkpoints import digests as it
from sdtt_jax.errors import CheckpointError
from sdtt_jax.ops import digest as ops

DTYPES = ("float32", "bfloat16", "int32", "uint8", "bool")
NAMES = ["by a compiled program", "by NumPy"]


@pytest.fixture(autouse=True, scope="module", params=[0, ops.ON_HOST], ids=NAMES)
def _by(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "ON_HOST", request.param)
        yield


def digest(array) -> str:
    return it.describe({"x": jnp.asarray(array)})["x"][2]


@hypothesis.given(st.integers(0, 6 * 5 - 1), st.integers(0, 31))
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_flipped_bit_changes_the_digest(element, bit):
    values = np.arange(30, dtype=np.uint32).reshape(6, 5)
    changed = values.copy()
    changed.reshape(-1)[element] ^= np.uint32(1 << bit)
    assert digest(values.view(np.int32)) != digest(changed.view(np.int32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_of_leaf_has_one(dtype):
    x = jnp.array([[0, 1, 1], [1, 0, 1]], dtype)
    assert digest(x) == digest(x.copy())
    assert digest(x) != digest(x[::-1])
    assert len(digest(x)) == 16


def test_it_is_the_one_that_earlier_versions_wrote():
    """Digests of a few numbers of every type and of a key, from when devices and not NumPy computed them."""
    leaves = {name: jnp.arange(6).reshape(2, 3).astype(name) for name in DTYPES}
    leaves |= {"scalar": jnp.float32(-2.5), "key": jax.random.key(3), "none": jnp.zeros((0, 2))}
    assert {name: found for name, (*_, found) in it.describe(leaves).items()} == {
        "float32": "f14d9f09b871b1a1",
        "bfloat16": "2e810d2d8fe3dd1a",
        "int32": "21cdc90b70bf9d6a",
        "uint8": "21cdc90b70bf9d6a",
        "bool": "5410c62a0bf1d6c5",
        "scalar": "d6d84a978af69143",
        "key": "70ff705632551814",
        "none": "0000000000000000",
    }


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_those_of_the_pieces_that_processes_hold_add_up_to_the_wholes(dtype):
    whole = np.random.default_rng(0).normal(size=(6, 4, 5)).astype(dtype)
    pieces = [
        (slice(rows, rows + 3), slice(columns, columns + 2), slice(None))
        for rows in (0, 3)
        for columns in (0, 2)
    ]
    found = [ops.digest_on_host(whole[piece], piece, whole.shape) for piece in pieces]
    total = np.sum(np.array(found, np.uint32), axis=0, dtype=np.uint32)
    assert tuple(total) == ops.digest_on_host(whole)


def test_exchanged_elements_change_it():
    assert digest([1.0, 2.0]) != digest([2.0, 1.0])
    assert digest([[1.0, 2.0]]) != digest([[2.0, 1.0]])


def test_scalars_and_keys_have_one_too():
    assert digest(jnp.float32(1)) != digest(jnp.float32(2))
    assert digest(jax.random.key(1)) != digest(jax.random.key(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_leaf_that_is_not_finite_is_named(bad):
    with pytest.raises(CheckpointError, match="params/w holds values that are not finite"):
        it.describe({"params/w": jnp.array([1.0, bad])})


def test_params_digest_is_sha256_over_the_leaves_in_path_order():
    """Oracle: hashlib over the documented byte string, written out."""
    b = np.array([[1, 2]], np.float32)
    a = np.array([3], np.int32)
    expected = hashlib.sha256(
        b"a/z int32 [1]\n" + a.tobytes() + b"b float32 [1, 2]\n" + b.tobytes()
    ).hexdigest()
    assert it.params_digest({"b": jnp.asarray(b), "a": {"z": jnp.asarray(a)}}) == expected
