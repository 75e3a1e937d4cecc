"""A temperature that falls from step to step. Oracles: the sum over all orders, and a loop in Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.calls import cooled
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import (
    SamplerConfig,
    SamplerState,
    plan_generation,
    prior_sample,
    take_step,
)
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.categorical import NEG_INFINITY, divided
from tests.diffusion.test_sampler import (
    SCHEDULE,
    TABLE,
    TABLE_PARAMS,
    exact_first_hitting,
    run,
    text_counts,
)
from tests.statistics import assert_fits
from tests.worlds import LENGTH, MASK, predictions

_plan = jax.jit(plan_generation, static_argnames=("diffusion", "config"))
_step = jax.jit(take_step, static_argnames=("diffusion", "config"))


def test_cooled_texts_have_their_exact_probabilities():
    """n = 100,000, standard error 1.6e-3, seed 16: the table's logits are divided by the calls' temperatures,
    1.6, 1 and 0.4 times 0.9."""
    config = SamplerConfig(3, mode="first-hitting", temperature=0.9, cooling=0.6)
    x_init = prior_sample(100_000, LENGTH, MASK)
    state, _ = run(TABLE, TABLE_PARAMS, jax.random.key(16), x_init, config)
    tables = [
        predictions(TABLE, {"table": TABLE_PARAMS["table"] / (0.9 * factor)})
        for factor in (1.6, 1.0, 0.4)
    ]
    assert_fits(text_counts(state.x), exact_first_hitting(tables, 3))


def test_a_plans_temperatures_come_on_top_of_the_cooling():
    x_init, key = prior_sample(256, LENGTH, MASK), jax.random.key(4)
    diffusion, state = MaskedDiffusion(TABLE, SCHEDULE), SamplerState(x_init, np.int32(0))
    # 1.5 times 0.5 at the first step and 0.5 times 1.5 at the second.
    config, given = SamplerConfig(2, cooling=0.5), np.array([0.5, 1.5, 1.0], np.float32)
    plan, step = _plan(diffusion, key, x_init, config), SamplerConfig(2, temperature=0.75)
    warmer = plan.replace(temperatures=given)
    for index in range(2):
        both = _step(diffusion, TABLE_PARAMS, warmer, state, np.int32(index), config)
        state = _step(diffusion, TABLE_PARAMS, plan, state, np.int32(index), step)
        np.testing.assert_array_equal(both.x, state.x)


@pytest.mark.parametrize("mode", ["grid", "confidence", "remdm:eta=0.1"])
def test_every_decoder_of_one_call_a_step_cools(mode):
    """Oracle: a loop in Python over steps, each with its own temperature, given by the plan."""
    x_init, key = prior_sample(256, LENGTH, MASK), jax.random.key(4)
    config = SamplerConfig(2, mode=mode, cooling=0.5, final_denoise=False)
    state, _ = run(TABLE, TABLE_PARAMS, key, x_init, config)
    diffusion = MaskedDiffusion(TABLE, SCHEDULE)
    plan, by_hand = _plan(diffusion, key, x_init, config), SamplerState(x_init, np.int32(0))
    step, given = dataclasses.replace(config, cooling=0.0), np.array([1.5, 0.5, 1.0], np.float32)
    plan = plan.replace(temperatures=given)
    for index in range(2):
        by_hand = _step(diffusion, TABLE_PARAMS, plan, by_hand, np.int32(index), step)
    np.testing.assert_array_equal(state.x, by_hand.x)


@pytest.mark.parametrize("temperature", [1.2e-38, 3.4e38])
def test_cooled_temperatures_are_numbers_of_full_precision(temperature):
    """Oracle: `Filters`, which takes such temperatures for themselves, and any below them for greedy.

    At the ends logits of 1, 3 and 2 give one token, or all three alike.
    """
    at = jnp.asarray(cooled(4, temperature, 0.9))
    found = divided(jnp.array([[1.0, 3.0, 2.0]] * 4), at[:4, None])
    expected = [NEG_INFINITY, 0.0, NEG_INFINITY] if temperature < 1 else [0.0, 0.0, 0.0]
    np.testing.assert_allclose(found, [expected] * 4, atol=1e-37)


@pytest.mark.parametrize("temperature", ["1e-50", "1e39", "0"])
def test_temperatures_of_calls_are_numbers_of_float32(temperature):
    """1e-50 divided by 0 there."""
    with pytest.raises(ConfigError, match=r"must be positive numbers .*, and from 1.2e-38 to"):
        SamplerConfig(2, mode=f"learnt:counts=1/2,temperatures=1/{temperature}")
