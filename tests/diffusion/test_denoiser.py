"""A model without parameters is its configs: equal models are one static argument of `jit`."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import nelbo
from sdtt_jax.diffusion.schedule import SCHEDULES, ScheduleConfig, make_schedule
from tests.worlds import LENGTH, noisy_params, tiny_network


@pytest.mark.parametrize("kind", SCHEDULES)
def test_equal_configs_are_equal_and_hash_alike(kind):
    one, two = (
        MaskedDiffusion(tiny_network(), make_schedule(ScheduleConfig(kind))) for _ in range(2)
    )
    assert one == two
    assert hash(one) == hash(two)


def test_other_networks_and_schedules_differ():
    one = MaskedDiffusion(tiny_network(), make_schedule())
    assert one != MaskedDiffusion(tiny_network(time_conditioned=True), make_schedule())
    assert one != MaskedDiffusion(tiny_network(), make_schedule(ScheduleConfig(eps=1e-4)))


def test_a_schedule_with_another_config_has_its_functions():
    """It kept the old ones, and hashed like the real one. Oracle: the real one."""
    linear = ScheduleConfig("linear")
    replaced = dataclasses.replace(make_schedule(), config=linear)
    assert replaced == make_schedule(linear)
    assert float(replaced.sigma(0.5)) == float(make_schedule(linear).sigma(0.5)) == 5.0


def test_equal_models_are_compiled_once():
    traces = []

    def bound(diffusion, params, x0, key):
        traces.append(1)
        return nelbo(diffusion, params, x0, key)

    compiled = jax.jit(bound, static_argnames="diffusion")
    params = noisy_params(tiny_network(), 0)
    x0, key = jnp.zeros((2, LENGTH), jnp.int32), jax.random.key(0)
    for _ in range(2):
        compiled(MaskedDiffusion(tiny_network(), make_schedule()), params, x0, key)
    assert len(traces) == 1


def test_a_schedule_made_under_jit_outlives_its_trace():
    """Its constants are numbers, not traced values, because an equal schedule may already be compiled."""
    made = []

    @jax.jit
    def first(t):
        made.append(make_schedule(ScheduleConfig("geometric")))
        return made[0].dsigma(t)

    t = jnp.float32(0.3)
    assert float(first(t)) == pytest.approx(float(made[0].dsigma(t)), rel=1e-6)
