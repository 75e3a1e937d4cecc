"""Batches of one compiled size. Oracle: the function applied to all rows at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.model.batches import batched, even_offsets, join, map_batches, unmasked
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh, mesh_if_any
from sdtt_jax.parallel.placement import replicated
from tests.parallel.threads import in_threads
from tests.worlds import LENGTH, MASK, TableDenoiser, as_model, random_table

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
    assert set(shapes) == {(min(batch_size, 11), 2)}, "one size, so one compilation"


def test_each_batch_knows_its_index():
    def function(params, index, batch):
        del params
        return jnp.full(len(batch), index)

    result = map_batches(function, {"x": jnp.zeros(1)}, ROWS, 4)
    np.testing.assert_array_equal(result, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])


def test_a_model_of_one_device_within_a_mesh_of_several_says_how_to_load_it():
    """JAX said "incompatible devices". Oracle: the mesh's size. Parameters that JAX may move are no fault."""
    mesh = jax.sharding.AbstractMesh((4,), ("x",), (jax.sharding.AxisType.Auto,))
    params = random_table(0)
    fixed = jax.device_put(params, jax.devices()[0])
    with jax.sharding.use_abstract_mesh(mesh):
        for call in (
            as_model(TableDenoiser(), fixed).on_mesh,
            lambda: map_batches(lambda *_: ROWS, fixed, ROWS, 4),
        ):
            with pytest.raises(ConfigError, match="a mesh of 4; load the model with mesh="):
                call()
        with as_model(TableDenoiser(), params).on_mesh():
            pass


def test_parameters_on_a_mesh():
    """One device here; several are tried in processes of their own (tests/multidevice)."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.device_put({"scale": jnp.float32(2.0)}, replicated(mesh))
    assert mesh_if_any(params) == mesh
    assert mesh_if_any({"scale": jnp.float32(2.0)}) is None
    result = map_batches(lambda p, _, b: b.sum(axis=1) * p["scale"], params, ROWS, 4)
    np.testing.assert_array_equal(result, ROWS.sum(axis=1) * 2.0)


def test_a_batch_is_filled_up_with_a_row_that_is_given():
    """By repeats otherwise. Oracles: the rows that are computed, and `write`'s calls (see test_stopping)."""
    seen = []

    def function(_params, _index, batch):
        seen.append(np.asarray(batch)[-1].tolist())
        return batch

    for filler in (None, np.array([7, 8], np.int32)):
        work = batched(function, {"p": jnp.zeros(1)}, ROWS, 4, filler)
        np.testing.assert_array_equal(join([batch() for batch in work]), ROWS)
    assert seen == [[6, 7], [14, 15], [16, 17], [6, 7], [14, 15], [7, 8]]
    np.testing.assert_array_equal(unmasked(ROWS, 0), [1, 1])


def test_an_even_grid_is_over_the_rows_of_each_batch():
    """Oracle: written out."""
    np.testing.assert_array_equal(even_offsets(5, 2), [0, 0.5, 0, 0.5, 0])
    np.testing.assert_array_equal(even_offsets(4, 9), [0, 0.25, 0.5, 0.75])


def test_processes_that_hold_other_rows_are_an_error(monkeypatch):
    """Threads stand in for them. Oracle: the message, and that nothing is computed."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setitem(vars(mesh), "is_multi_process", True)  # a cached property
    params = jax.device_put({"scale": jnp.float32(2.0)}, replicated(mesh))
    other = ROWS + (ROWS == 15)

    def function(*_arguments):
        raise AssertionError

    works = [batched(function, params, rows, 4) for rows in (ROWS, other, ROWS[:6])]
    second = [batches[1] for batches in works]
    for error in in_threads(monkeypatch, *second):
        assert isinstance(error, ConfigError)
        assert re.search(
            r"texts of processes 1, 2 and of process 0 differ .* give all hosts the same files",
            str(error),
        )


def test_rows_may_be_a_tree():
    rows = {"x": ROWS, "weight": np.arange(11, dtype=np.float32)}
    result = map_batches(
        lambda _p, _i, b: (b["x"].sum(axis=1) * b["weight"], b["x"]), {"p": jnp.zeros(1)}, rows, 4
    )
    np.testing.assert_array_equal(result[0], ROWS.sum(axis=1) * np.arange(11))
    np.testing.assert_array_equal(result[1], ROWS)


def test_nothing_is_computed_before_it_is_asked_for():
    calls = []

    def function(params, index, batch):
        del params
        calls.append(int(index))
        return batch

    work = batched(function, {"p": jnp.zeros(1)}, ROWS, 4)
    assert (len(work), calls) == (3, [])
    np.testing.assert_array_equal(work[2](), ROWS[8:])
    assert calls == [2]


def write(params, num_texts, batch_size, seed=0):
    model = as_model(TableDenoiser(), params)
    x_init = np.full((num_texts, LENGTH), MASK, np.int32)
    config = SamplerConfig(num_steps=4)
    return join([b() for b in model.batches(jax.random.key(seed), x_init, config, batch_size)])


def test_texts_are_whole_and_as_many_as_asked_for():
    tokens, nfe = write(random_table(0), 42, batch_size=32)
    assert tokens.shape == (42, LENGTH)
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < MASK
    assert nfe.shape == (42,)
    assert np.all((nfe >= 1) & (nfe <= 5))


def test_equal_keys_give_equal_texts_and_batches_differ():
    params = random_table(0)
    first, again = (write(params, 64, 32).tokens for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first[:32] != first[32:])


def test_two_models_share_their_noise():
    """Close models with the same key: most texts are equal; with independent noise they would not be."""
    table = random_table(0)
    close = {"table": table["table"] + 0.01}
    near = {"table": table["table"] + 0.02 * random_table(9)["table"]}
    ours = write(table, 256, 32).tokens
    np.testing.assert_array_equal(ours, write(close, 256, 32).tokens)
    assert (ours == write(near, 256, 32).tokens).all(axis=1).mean() > 0.9
    assert (ours == write(table, 256, 32, seed=1).tokens).all(axis=1).mean() < 0.5
