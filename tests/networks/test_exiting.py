"""Early exits. Oracles: the network itself, its inner states, and a loop in Python over layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.exiting import Exiting, layer_by_layer
from tests.worlds import noisy_params

LENGTH, VOCAB, LAYERS = 8, 12, 5
NETWORK = Denoiser(
    DenoiserConfig(VOCAB, length=LENGTH, num_layers=LAYERS, embed_dim=16, num_heads=2, cond_dim=8)
)
PARAMS = noisy_params(NETWORK, 0)
TOKENS = np.random.default_rng(1).integers(0, VOCAB + 1, (6, LENGTH)).astype(np.int32)
TOKENS[0] = 3  # nothing is masked


@pytest.fixture(scope="module")
def inner():
    return jax.jit(lambda t: layer_by_layer(NETWORK, PARAMS, t))(TOKENS)


def left(threshold, tokens=TOKENS, least=1):
    return jax.jit(Exiting(NETWORK, threshold, least).leave)(PARAMS, tokens)


def test_the_last_layer_is_the_network(inner):
    states, _ = inner
    whole = NETWORK.hidden(PARAMS, TOKENS)
    np.testing.assert_allclose(states[-1], whole, atol=1e-5)
    hidden, layers = left(1.01)
    np.testing.assert_allclose(hidden, whole, atol=1e-5)
    assert (layers == LAYERS).all()


def test_each_text_leaves_at_the_first_layer_that_has_settled_whatever_the_others_do(inner):
    states, settled = (np.asarray(x) for x in inner)
    threshold = float(np.median(settled[:, 1:]))
    hidden, layers = left(threshold, least=2)
    for row in range(len(TOKENS)):
        expected = next((n for n in range(2, LAYERS) if settled[n - 1, row] >= threshold), LAYERS)
        assert layers[row] == expected
        np.testing.assert_allclose(hidden[row], states[expected - 1, row], atol=1e-5)
    assert layers[0] == 2
    assert len(set(layers.tolist())) > 1


def test_it_takes_the_place_of_the_network_in_the_sampler():
    """One that never leaves writes what the network writes."""
    config, x_init = SamplerConfig(2, mode="first-hitting"), prior_sample(4, LENGTH, VOCAB)

    def written(network):
        diffusion = MaskedDiffusion(network, make_schedule())
        return jax.jit(lambda: sample(diffusion, PARAMS, jax.random.key(0), x_init, config)[0])()

    state, whole = written(Exiting(NETWORK, 1.01)), written(NETWORK)
    np.testing.assert_array_equal(state.x, whole.x)
    assert int(state.nfe) == int(whole.nfe)
    assert jnp.all(written(dataclasses.replace(Exiting(NETWORK, -1.0), least=1)).x < VOCAB)
