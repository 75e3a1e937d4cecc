"""The state: made in place, or from parameters that are there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.training.optimizers import OptimizerConfig, make_optimizer
from sdtt_jax.training.state import abstract_like, abstract_state, init_state, state_from_params
from tests.training import toy

INIT = functools.partial(toy.init, jax.random.key(0))


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(OptimizerConfig("muon", warmup_steps=0), 10)


@pytest.fixture(scope="module")
def state(optimizer):
    context = {"round": 3, "dt": jnp.float32(0.25)}
    return init_state(INIT, optimizer, make_mesh(MeshConfig()), context=context, ema=True)


def test_a_fresh_state_holds_the_init_s_parameters_and_starts_at_zero(state):
    expected = unbox(INIT())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params, expected)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)
    assert int(state.step) == int(state.ema_count) == int(state.rejected) == 0
    assert int(state.context["round"]) == 3


def test_the_abstract_state_describes_it_without_making_it(state, optimizer):
    context = {"round": 0, "dt": jnp.float32(0)}
    mesh = make_mesh(MeshConfig())
    described = abstract_state(INIT, optimizer, mesh, context=context, ema=True)
    made = abstract_like(state)
    assert jax.tree.structure(described) == jax.tree.structure(made)
    for a, b in zip(jax.tree.leaves(described), jax.tree.leaves(made), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_a_new_round_starts_from_parameters_and_shares_no_buffer(state, optimizer):
    """Student, average and teacher begin equal; donating one may not delete another."""
    new = state_from_params(
        state.params,
        optimizer,
        context={"teacher": state.params},
        ema=True,
        ema_params=state.ema_params,
        ema_count=7,
    )
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, new.context["teacher"], state.params)
    assert int(new.ema_count) == 7

    def pointers(tree):
        return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}

    groups = [new.params, new.ema_params, new.context["teacher"], state.params, state.ema_params]
    assert len(set.union(*map(pointers, groups))) == sum(len(pointers(g)) for g in groups)


def test_without_an_average_there_is_none(optimizer):
    state = init_state(INIT, optimizer, make_mesh(MeshConfig()))
    assert state.ema_params is None
    assert state.context == {}
