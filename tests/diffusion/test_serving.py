"""When a decoder ran out of steps. Oracle: the state before the last, greedy call."""

import jax
import pytest

from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.decoders.serving import ran_out
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from tests.worlds import LENGTH, MASK, TableDenoiser, random_table

_sample = jax.jit(sample, static_argnames=("diffusion", "config", "keep_states"))


@pytest.mark.parametrize("num_steps", [LENGTH - 1, LENGTH])
@pytest.mark.parametrize(
    ("mode", "guidance", "one_a_step"),
    [
        ("speculative:window=1", 0.0, True),
        ("entropy-bounded:bound=0", 0.0, True),
        ("confidence:threshold=1", 0.0, True),
        ("confidence:threshold=1", 0.5, True),
        ("confidence", 0.0, False),
        ("refine:rounds=1,window=2,threshold=1", 0.0, False),
    ],
)
def test_steps_that_were_too_few_are_told_by_their_calls(mode, guidance, one_a_step, num_steps):
    diffusion, params = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(2)
    x_init = prior_sample(2, LENGTH, MASK)
    if guidance:
        x_init = x_init.at[0, 0].set(1)
    helper = Helper(random_table(3), TableDenoiser()) if mode.startswith("speculative") else None
    config = SamplerConfig(num_steps, mode=mode, guidance=guidance)
    key = jax.random.key(0)
    state, states = _sample(diffusion, params, key, x_init, config, keep_states=True, helper=helper)
    left = bool((states[-2] == MASK).any())
    assert left == (one_a_step and num_steps < LENGTH)
    assert ran_out(parse_mode(mode), num_steps, guidance, int(state.nfe)) == left
