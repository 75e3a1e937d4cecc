"""One program for any number of steps. Oracle: `sampler.sample` with the same key, token by token."""

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion import shared_program
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.diffusion.shared_program import (
    common_config,
    follow,
    outline,
    own_temperatures,
    wide_plan,
)
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from tests.worlds import LENGTH, MASK, TableDenoiser, random_table, tiny_network

DIFFUSION, PARAMS = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(1)
# Some share the program of `follow`: those with the same filters, and those without a last step.
CONFIGS = [
    SamplerConfig(1),
    SamplerConfig(3, temperature=0.0),
    SamplerConfig(3, temperature=1.7, top_k=2, top_p=0.9),
    SamplerConfig(2, time_grid="cosine", temperature=0.7, final_denoise=False),
    SamplerConfig(3, cooling=0.5, final_denoise=False),
    SamplerConfig(2, mode="first-hitting", temperature=0.8, cooling=0.9, top_k=2, top_p=0.9),
]
_follow = jax.jit(follow, static_argnames=("diffusion", "config"))
_sample = jax.jit(sample, static_argnames=("diffusion", "config"))
_plan = jax.jit(wide_plan, static_argnames=("diffusion", "config"))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_it_writes_what_the_sampler_writes(config):
    x_init, key = np.full((64, LENGTH), MASK, np.int32), jax.random.key(3)
    x_init[:, 0] = 1
    plan = _plan(outline(DIFFUSION), key, x_init, config)
    steps = np.int32(config.num_steps)
    plan = plan.replace(temperatures=own_temperatures(config))
    found = _follow(DIFFUSION, PARAMS, plan, x_init, steps, common_config(config))
    wanted, _ = _sample(DIFFUSION, PARAMS, key, x_init, config)
    np.testing.assert_array_equal(found.x, wanted.x)
    assert found.nfe == wanted.nfe


def test_numbers_of_steps_and_ways_to_spread_them_share_a_program():
    configs = (
        SamplerConfig(1),
        SamplerConfig(2, mode="first-hitting"),
        SamplerConfig(1, temperature=0.8),
        SamplerConfig(3, cooling=0.5),
    )
    assert len({common_config(config) for config in configs}) == 1
    assert common_config(SamplerConfig(1, temperature=0.0)).greedy


def test_networks_share_the_program_of_a_plan_unless_their_noise_differs():
    noise = NoiseConfig(hidden_dim=8)
    coupled = CoupledDenoiser(CoupledConfig.of(tiny_network().config, noise))
    table, real, seeing = (
        outline(MaskedDiffusion(network, DIFFUSION.schedule))
        for network in (DIFFUSION.denoiser, tiny_network(), coupled)
    )
    assert table == real != seeing
    assert hash(table) == hash(real)
    assert seeing.noise_kind == coupled.noise_kind


def test_temperatures_share_a_program_but_for_0():
    """At 0 no token is drawn."""
    found = [own_temperatures(SamplerConfig(2, temperature=t)) for t in (0.0, 0.5, 1.0, 2.0)]
    assert [x if x is None else x[:2].tolist() for x in found] == [
        None,
        [0.5, 0.5],
        [1.0, 1.0],
        [2.0, 2.0],
    ]
    assert own_temperatures(SamplerConfig(2, cooling=0.5))[:3].tolist() == [1.5, 0.5, 1.0]


@pytest.mark.parametrize("mode", ["learnt", "confidence", "remdm", "blocks", "grid:stop=eos:1"])
def test_what_the_network_decides_needs_a_program_of_its_own(mode):
    assert common_config(SamplerConfig(4, mode=mode)) is None


def test_more_steps_than_a_plan_has_room_for():
    assert common_config(SamplerConfig(shared_program.CAPACITY)) is not None
    assert common_config(SamplerConfig(shared_program.CAPACITY + 1)) is None


def test_what_no_step_reveals_is_filled_at_the_end():
    """With "grid" that is one position in 100,000. Oracle: the last position's most probable token."""
    config, x_init = SamplerConfig(1), np.full((64, LENGTH), MASK, np.int32)
    plan = _plan(outline(DIFFUSION), jax.random.key(3), x_init, config)
    late = plan.replace(call=plan.call.at[:, -1].set(shared_program.CAPACITY))
    texts = np.asarray(
        _follow(DIFFUSION, PARAMS, late, x_init, np.int32(1), common_config(config)).x
    )
    assert (texts[:, :-1] != MASK).all()
    rows = texts @ [16, 4, 1] - texts[:, -1] + MASK
    np.testing.assert_array_equal(texts[:, -1], PARAMS["table"][rows, -1].argmax(axis=-1))
