"""Rows in chunks. Oracle: a plain loop over the selected rows in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.rows import (
    MAX_ENTRIES,
    MAX_ROWS,
    MAX_TURNS,
    Chunks,
    chunk_size,
    flatten,
    fold_selected,
    map_and_sum,
    map_selected,
    take_rows,
)


@functools.partial(jax.jit, static_argnames="size")
def _visits(selected: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows in the order in which they came, their number, and the number of turns."""
    rows = len(selected)

    def body(carry, index):
        order, count, turns = carry
        place = jnp.where(index < rows, count + jnp.arange(size), rows)
        count += (index < rows).sum()
        return order.at[place].set(index, mode="drop"), count, turns + 1

    return fold_selected(selected, size, body, (jnp.full(rows, -1, jnp.int32), 0, 0))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (7, 40), (33, 5), (32, 8)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_every_selected_row_comes_once_and_in_order(rows, size, share):
    selected = np.random.default_rng(rows).random(rows) < share
    order, count, turns = jax.device_get(_visits(selected, size))
    assert order[:count].tolist() == np.flatnonzero(selected).tolist()
    assert turns == -(-selected.sum() // size), "no turn is made for nothing"


def test_spare_places_read_as_zero():
    x = np.arange(1.0, 7.0, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(jax.jit(take_rows)(x, np.array([2, 3])), [[5, 6], [0, 0]])


def test_flatten_joins_batch_and_length():
    tree = flatten({"a": np.zeros((2, 3)), "b": np.zeros((2, 3, 4, 5))})
    assert tree["a"].shape == (6,)
    assert tree["b"].shape == (6, 4, 5)


@pytest.mark.parametrize(
    ("rows", "columns", "parts", "expected"),
    [
        (1024, 128, 4, 256),
        (4096, 128, 32, 128),
        (1024, 50_304, 4, 256),
        (4096, 50_304, 4, 336),  # capped: 2^24 / 50304 is 333.5
        (32 * 1024, 50_304, 4, 1024),  # but at least a 32nd of a large batch
        (512 * 1024, 50_304, 4, 4096),  # up to `MAX_ROWS`
        (3, 128, 4, 3),  # never more than there are
        (100, 128, 32, 8),  # nor less than a lane
        (100, 2**30, 4, 8),
    ],
)
def test_chunk_size(rows, columns, parts, expected):
    size = chunk_size(rows, columns, parts)
    assert size == expected
    assert size in (8, MAX_ROWS, rows // MAX_TURNS) or size * columns <= 1.06 * MAX_ENTRIES


def _scaled(rows, factor):
    total = (factor * rows).sum()
    return (rows[:, 0] * factor, (rows[:, 1] > 0).astype(jnp.int32) + 10), {"total": total}


@jax.jit
def _mapped(selected, x, fill):
    chunks, factor = Chunks("rows", 4), jnp.float32(3)
    return map_and_sum(_scaled, selected, x, factor, 128, chunks, fill)


@jax.jit
def _values(selected, x, fill):
    chunks, factor = Chunks("rows", 4), jnp.float32(3)
    return map_selected(lambda *rows: _scaled(*rows)[0], selected, x, factor, 128, chunks, fill)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 17), (2, 8)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_map_selected_is_a_loop_over_the_selected_positions(batch, length, share):
    """Values where selected and the fill elsewhere; sums over the selected positions alone."""
    rng = np.random.default_rng(batch)
    selected, x = rng.random((batch, length)) < share, rng.standard_normal((batch, length, 2))
    fill = rng.integers(0, 9, (batch, length), dtype=np.int32)
    below = np.full((batch, length), -1.0, np.float32)
    (values, marks), sums = _mapped(selected, x, (below, fill))
    expected = np.where(selected, 3 * x[..., 0], -1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_array_equal(marks, np.where(selected, (x[..., 1] > 0) + 10, fill))
    np.testing.assert_allclose(sums["total"], 3 * x[selected].sum(), rtol=1e-4, atol=1e-5)
    alone = _values(selected, x, (below, fill))
    jax.tree.map(np.testing.assert_array_equal, alone, (values, marks))
    (values, marks), _ = jax.device_get(_mapped(selected, x, None))
    np.testing.assert_array_equal(values == 0, ~selected)
    np.testing.assert_array_equal(marks == 0, ~selected)


@pytest.mark.parametrize(
    ("selected", "row", "fill"),
    [
        ((4, 8), (1, 8, 2), (4, 8)),  # one text for four, read as zeros past its end
        ((4, 8), (4, 4, 2), (4, 8)),  # another length, read at wrong places
        ((4, 8), (4, 8, 2), (4, 7)),
        ((4, 8), (8,), (4, 8)),
        ((8,), (8, 2), (8,)),
    ],
)
def test_arrays_of_different_batches_are_refused_while_tracing(selected, row, fill):
    """Each array is flattened to rows, so nothing else would notice."""
    ours, x, below = (np.zeros(shape, np.float32) for shape in (selected, row, fill))
    with pytest.raises(ConfigError, match=r"begin with the same \[batch, length\], not \["):
        jax.eval_shape(_mapped, ours > 0, x, (below, below.astype(np.int32)))


def test_arrays_of_numpy_are_taken_outside_of_jit():
    """Oracle: the same within `jit`."""
    selected, x = np.arange(6).reshape(2, 3) % 2 > 0, np.ones((2, 3, 2), np.float32)
    fill = np.zeros((2, 3), np.float32), np.ones((2, 3), np.int32)
    jax.tree.map(
        np.testing.assert_array_equal,
        _mapped.__wrapped__(selected, x, fill),
        _mapped(selected, x, fill),
    )
