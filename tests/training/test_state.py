"""The state: made in place, or from existing parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig, num_updates
from sdtt_jax.training.state import StateSpec
from tests.training import toy

INIT = functools.partial(toy.init, jax.random.key(0))


def spec_of(**fields) -> StateSpec:
    optimizer = OptimizerConfig("muon", warmup_steps=0)
    return StateSpec(TrainConfig(10, 8, optimizer=optimizer, **fields), make_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def spec():
    return spec_of(ema_decay=0.9)


@pytest.fixture(scope="module")
def state(spec):
    return spec.init(INIT, {"round": 3, "dt": jnp.float32(0.25)})


def test_a_fresh_state_holds_the_init_s_parameters_and_starts_at_zero(state):
    expected = unbox(jax.jit(INIT)())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params, expected)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)
    assert int(state.step) == int(state.ema_count) == int(state.rejected) == 0
    assert int(state.context["round"]) == 3


def test_the_abstract_state_describes_it_without_making_it(state, spec):
    described = spec.abstract(INIT, {"round": 0, "dt": jnp.float32(0)})
    made = toy.abstract_like(state)
    assert jax.tree.structure(described) == jax.tree.structure(made)
    for a, b in zip(jax.tree.leaves(described), jax.tree.leaves(made), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_a_new_round_starts_from_parameters_and_shares_no_buffer(state, spec):
    """Student, average and teacher begin equal; donating one must not delete another."""
    new = spec.from_params(
        state.params, {"teacher": state.params}, ema_params=state.ema_params, ema_count=7
    )
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, new.context["teacher"], state.params)
    assert int(new.ema_count) == 7

    def pointers(tree):
        return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}

    groups = [new.params, new.ema_params, new.context["teacher"], state.params, state.ema_params]
    assert len(set.union(*map(pointers, groups))) == sum(len(pointers(g)) for g in groups)


def test_parameters_that_cannot_be_trained_so_are_named(spec):
    """They were errors of Python and of `lax.cond`; an average in bfloat16 would stand still at 0.9999."""
    host = {"w": np.ones((2, 2), np.float32)}
    with pytest.raises(ConfigError, match="params: w is ndarray, not an array on the mesh's 1 dev"):
        spec.from_params(host)
    with pytest.raises(
        ConfigError, match=r"ema_decay=0\.9 needs parameters of float32, and w is bf"
    ):
        spec.abstract({"w": jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)})


def test_a_state_has_the_averages_that_its_config_asks_for():
    plain, spikes = spec_of().init(INIT), spec_of(spike_factor=3.0).init(INIT)
    assert (plain.ema_params, plain.loss_mean, plain.context) == (None, None, {})
    assert float(spikes.loss_mean) == 0
    ignored = spec_of().from_params(plain.params, ema_params=plain.params, ema_count=7)
    assert ignored.ema_params is None


def test_an_optimizer_that_cannot_go_on_is_named(state, spec):
    """It was an error of JAX's `device_put`, or a later round at a rate of zero, without a word."""
    decaying = OptimizerConfig("muon", warmup_steps=0, schedule="linear")
    ended = jax.tree.map(lambda x: x + 4 if x.dtype == jnp.int32 else x, state.opt_state)
    cases = {
        "of the config's adam for": (TrainConfig(9, 8, optimizer=OptimizerConfig("adam")), ended),
        "made 4 updates, after which sch": (TrainConfig(4, 8, optimizer=decaying), ended),
    }
    for message, (config, opt_state) in cases.items():
        with pytest.raises(ConfigError, match=message):
            StateSpec(config, spec.mesh).from_params(state.params, opt_state=opt_state)
    going_on = StateSpec(TrainConfig(5, 8, optimizer=decaying), spec.mesh)
    new = going_on.from_params(state.params, opt_state=ended)
    assert int(num_updates(new.opt_state)) == 4
