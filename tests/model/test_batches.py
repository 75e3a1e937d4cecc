"""Batches of one compiled size. Oracle: the function applied to all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sdtt_jax.evaluation.batches import batch_rows, map_batches

from sdtt_jax.parallel.mesh import MeshConfig, make_mesh, mesh_if_any
from sdtt_jax.parallel.placement import replicated

ROWS = np.arange(22, dtype=np.int32).reshape(11, 2)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 32])
def test_results_are_those_of_all_rows_at_once(batch_size):
    shapes = []

    def function(params, index, batch):
        del index
        shapes.append(batch.shape)
        return {"sum": (batch * params["scale"]).sum(axis=1), "first": batch[:, 0]}

    result = map_batches(function, {"scale": jnp.float32(0.5)}, ROWS, batch_size)
    np.testing.assert_array_equal(result["sum"], ROWS.sum(axis=1) * 0.5)
    np.testing.assert_array_equal(result["first"], ROWS[:, 0])
    assert result["sum"].dtype == np.float64
    assert set(shapes) == {(batch_size, 2)}, "one size, so one compilation"


def test_each_batch_knows_its_index():
    def function(params, index, batch):
        del params
        return jnp.full(len(batch), index)

    result = map_batches(function, {"x": jnp.zeros(1)}, ROWS, 4)
    np.testing.assert_array_equal(result, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])


def test_parameters_on_a_mesh():
    """One device here; several are tried in processes of their own (tests/training)."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.device_put({"scale": jnp.float32(2.0)}, replicated(mesh))
    assert mesh_if_any(params) == mesh
    assert mesh_if_any({"scale": jnp.float32(2.0)}) is None
    assert batch_rows(params, 5) == 5
    result = map_batches(lambda p, _, b: b.sum(axis=1) * p["scale"], params, ROWS, 4)
    np.testing.assert_array_equal(result, ROWS.sum(axis=1) * 2.0)


def test_rows_may_be_a_tree():
    rows = {"x": ROWS, "weight": np.arange(11, dtype=np.float32)}
    result = map_batches(
        lambda _p, _i, b: (b["x"].sum(axis=1) * b["weight"], b["x"]), {"p": jnp.zeros(1)}, rows, 4
    )
    np.testing.assert_array_equal(result[0], ROWS.sum(axis=1) * np.arange(11))
    np.testing.assert_array_equal(result[1], ROWS)
