"""Early exits. Oracles: the network itself, its inner states, and a loop in Python over layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.exiting import EXIT_PARAMS, Exiting, layer_by_layer, untrained_exits
from tests.worlds import noisy_params

LENGTH, VOCAB, LAYERS = 8, 12, 5
NETWORK = Denoiser(
    DenoiserConfig(VOCAB, length=LENGTH, num_layers=LAYERS, embed_dim=16, num_heads=2, cond_dim=8)
)
PARAMS = functools.partial(noisy_params, NETWORK, 0)
TOKENS = np.random.default_rng(1).integers(0, VOCAB + 1, (6, LENGTH)).astype(np.int32)
TOKENS[0] = 3  # nothing is masked


def some_exits():
    """Maps and readers of every layer but the last."""
    rng = np.random.default_rng(1)
    made = {
        name: 0.1 * rng.standard_normal(x.shape, np.float32)
        for name, x in untrained_exits(NETWORK.config).items()
    }
    for x in made.values():
        x[-1] = 0
    return jax.tree.map(jnp.asarray, made)


@pytest.fixture(scope="module", params=["own states", "trained exits"])
def params(request):
    return PARAMS() if request.param == "own states" else PARAMS() | {EXIT_PARAMS: some_exits()}


@pytest.fixture(scope="module")
def inner(params):
    return jax.jit(lambda t: layer_by_layer(NETWORK, params, t))(TOKENS)


def left(params, threshold, least=1):
    return jax.jit(Exiting(NETWORK, threshold, least).leave)(params, TOKENS)


def test_the_last_layer_is_the_network(inner, params):
    states, _ = inner
    whole = jax.jit(NETWORK.hidden)(PARAMS(), TOKENS)
    np.testing.assert_allclose(states[-1], whole, atol=1e-5)
    hidden, layers = left(params, 1.01)
    np.testing.assert_allclose(hidden, whole, atol=1e-5)
    assert (layers == LAYERS).all()


def test_each_text_leaves_at_the_first_layer_that_has_settled_whatever_the_others_do(inner, params):
    states, settled = (np.asarray(x) for x in inner)
    threshold = float(np.median(settled[1:-1, 1:]))
    hidden, layers = left(params, threshold, least=2)
    for row in range(len(TOKENS)):
        expected = next((n for n in range(2, LAYERS) if settled[n - 1, row] >= threshold), LAYERS)
        assert layers[row] == expected
        np.testing.assert_allclose(hidden[row], states[expected - 1, row], atol=1e-5)
    assert layers[0] == 2
    assert len(set(layers.tolist())) > 1


def test_trained_exits_say_themselves_how_far_they_have_settled():
    """The mean over masked positions of 1 / (1 + exp(-(x · agreement + offset))), by NumPy."""
    exits = some_exits()
    states, settled = jax.jit(lambda p: layer_by_layer(NETWORK, p, TOKENS))(
        PARAMS() | {EXIT_PARAMS: exits}
    )
    logits = np.einsum("lbie,le->lbi", states, exits["agreement"])
    said = 1 / (1 + np.exp(-(logits + np.asarray(exits["offset"])[:, None, None])))
    for row, masked in enumerate(np.equal(TOKENS, NETWORK.mask_id)):
        mean = said[:, row, masked].mean(axis=-1) if masked.any() else 1.0
        np.testing.assert_allclose(settled[:, row], mean, atol=1e-5)


def test_an_exit_is_a_map_of_its_layers_states_before_the_norm():
    """At a layer with states x, the head reads norm(x + x A + b); here A cancels x."""
    exits, layer = untrained_exits(NETWORK.config), 1
    exits = jax.tree.map(np.array, exits)
    exits["kernel"][layer] = -np.eye(NETWORK.config.embed_dim)
    exits["bias"][layer] = np.arange(NETWORK.config.embed_dim)
    plain, mapped = (
        np.asarray(jax.jit(lambda p: layer_by_layer(NETWORK, p, TOKENS)[0])(PARAMS() | more))
        for more in ({}, {EXIT_PARAMS: exits})
    )
    for other in {*range(LAYERS)} - {layer}:
        np.testing.assert_array_equal(mapped[other], plain[other])
    alike = np.broadcast_to(mapped[layer][:1, :1], mapped[layer].shape)
    np.testing.assert_allclose(mapped[layer], alike, atol=1e-5)
    assert np.abs(mapped[layer]).max() > 0.1


def test_it_takes_the_place_of_the_network_in_the_sampler():
    """A network that never exits early writes what the plain network writes."""
    config, x_init = SamplerConfig(2, mode="first-hitting"), prior_sample(4, LENGTH, VOCAB)

    def written(network):
        diffusion = MaskedDiffusion(network, make_schedule())
        return jax.jit(lambda: sample(diffusion, PARAMS(), jax.random.key(0), x_init, config)[0])()

    state, whole = written(Exiting(NETWORK, 1.01)), written(NETWORK)
    np.testing.assert_array_equal(state.x, whole.x)
    assert int(state.nfe) == int(whole.nfe)
    early = written(dataclasses.replace(Exiting(NETWORK, -1.0), least=1))
    assert (np.asarray(early.x) < VOCAB).all()
