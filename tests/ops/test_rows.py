"""Rows in chunks. Oracle: a plain loop over the selected rows in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.ops.rows import (
    MAX_ENTRIES,
    MAX_ROWS,
    MAX_TURNS,
    Chunks,
    chunk_size,
    flatten,
    fold_selected,
    map_selected,
    take_rows,
)


def _visited(selected: list[bool], size: int) -> tuple[list[int], int]:
    """Rows in the order in which they came, and the number of turns."""
    rows = len(selected)

    def body(carry, index):
        order, count, turns = carry
        place = jnp.where(index < rows, count + jnp.arange(size), rows)
        count += (index < rows).sum()
        return order.at[place].set(index, mode="drop"), count, turns + 1

    order, count, turns = jax.jit(
        lambda s: fold_selected(s, size, body, (jnp.full(rows, -1, jnp.int32), 0, 0))
    )(np.array(selected))
    return np.asarray(order)[: int(count)].tolist(), int(turns)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=33), st.integers(1, 40))
def test_every_selected_row_comes_once_and_in_order(selected, size):
    order, turns = _visited(selected, size)
    assert order == np.flatnonzero(selected).tolist()
    assert turns == -(-sum(selected) // size), "no turn is made for nothing"


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


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(1, 17), st.integers(0, 2**16))
def test_map_selected_is_a_loop_over_the_selected_positions(batch, length, seed):
    """Values where selected and the fill elsewhere; sums over the selected positions alone."""
    rng = np.random.default_rng(seed)
    selected, x = rng.random((batch, length)) < 0.4, rng.standard_normal((batch, length, 2))
    fill = rng.integers(0, 9, (batch, length), dtype=np.int32)

    def function(rows, factor):
        total = (factor * rows).sum()
        return (rows[:, 0] * factor, (rows[:, 1] > 0).astype(fill.dtype) + 10), {"total": total}

    @jax.jit
    def mapped(selected, x, fill):
        chunks, factor = Chunks("rows", 4), jnp.float32(3)
        return map_selected(function, selected, x, factor, 128, chunks, fill)

    below = np.full((batch, length), -1.0, np.float32)
    (values, marks), sums = mapped(selected, x, (below, fill))
    expected = np.where(selected, 3 * x[..., 0], -1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_array_equal(marks, np.where(selected, (x[..., 1] > 0) + 10, fill))
    np.testing.assert_allclose(sums["total"], 3 * x[selected].sum(), rtol=1e-4, atol=1e-5)
    (values, marks), _ = jax.device_get(mapped(selected, x, None))
    np.testing.assert_array_equal(values == 0, ~selected)
    np.testing.assert_array_equal(marks == 0, ~selected)
