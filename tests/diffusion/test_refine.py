"""A draft and its revision. Oracles: the positions that were given, and the windows by hand.

The law of whole generations is in tests/laboratory/test_decoder_steps.py.
"""

import jax
import numpy as np

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from tests.worlds import LENGTH, MASK, TableDenoiser, random_table

BATCH = 64
_sample = jax.jit(sample, static_argnames=("diffusion", "config", "keep_states"))


def states_of(given):
    """Two calls for the draft, and two rounds in which every token of a window of two is drawn again."""
    x_init = np.full((BATCH, LENGTH), MASK, np.int32)
    x_init[:, given] = 1
    config = SamplerConfig(4, mode="refine:rounds=2,window=2,threshold=1")
    diffusion, key = MaskedDiffusion(TableDenoiser(), make_schedule()), jax.random.key(0)
    return np.asarray(_sample(diffusion, random_table(2), key, x_init, config, keep_states=True)[1])


def test_what_is_given_within_a_window_stays():
    assert (states_of(1)[:, :, 1] == 1).all()


def test_after_the_last_position_the_windows_begin_again_after_the_prompt():
    _, _, draft, first, second, last = states_of(0)
    for before, after in ((draft, first), (first, second)):
        assert ((before != after).any(axis=0) == [False, True, True]).all()
    np.testing.assert_array_equal(second, last)
