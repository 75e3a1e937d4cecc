"""The plan of `skeleton`, from a real causal network with its cache. Oracle: a loop without one.

Its law is tested in tests/laboratory/test_decoder_steps.py, a trained helper in tests/experiments.
"""

import functools

import jax
import numpy as np

from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import CausalConfig, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser
from tests.worlds import noisy_params

VOCAB, LENGTH, EVERY, BOS = 9, 12, 3, 7
SIZES = {"num_layers": 2, "embed_dim": 16, "num_heads": 2}
DENOISER = Denoiser(DenoiserConfig(VOCAB, LENGTH, cond_dim=8, **SIZES))
CAUSAL = CausalNetwork(CausalConfig(VOCAB, LENGTH, **SIZES))
PARAMS = functools.partial(noisy_params, DENOISER, 0)


def test_bones_are_the_causal_models_own_and_what_is_given_stays():
    """Greedy, for three texts; in one of them a bone and another token are given."""
    mask, helper = DENOISER.mask_id, Helper(noisy_params(CAUSAL, 1), CAUSAL, BOS)
    x = np.full((3, LENGTH), mask, np.int32)
    x[1, EVERY], x[1, 2 * EVERY + 1] = 4, 5
    given = x[:, ::EVERY]
    bones = np.zeros_like(given)
    logits = jax.jit(lambda params, seen: CAUSAL.logits(params, CAUSAL.hidden(params, seen)))
    for place in range(bones.shape[1]):
        # The zeros from this place on are not seen at it.
        seen = np.concatenate([np.full((3, 1), BOS, np.int32), bones[:, :-1]], axis=1)
        best = np.asarray(logits(helper.params, seen))[:, place, :VOCAB].argmax(axis=1)
        bones[:, place] = np.where(given[:, place] == mask, best, given[:, place])
    assert len({tuple(row) for row in bones.tolist()}) == 2, "what is given changes what follows"

    config = SamplerConfig(3, mode=f"skeleton:every={EVERY}", temperature=0.0)
    model = MaskedDiffusion(DENOISER, make_schedule())
    sampled = jax.jit(sample, static_argnames=("diffusion", "config"))
    state, _ = sampled(model, PARAMS(), jax.random.key(2), x, config, helper=helper)
    np.testing.assert_array_equal(state.x[:, ::EVERY], bones)
    assert state.x[1, 2 * EVERY + 1] == 5
    assert int(state.nfe) == LENGTH // EVERY + 2
