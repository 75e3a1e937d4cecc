"""The denoiser that sees noise. Oracles: the denoiser it was made from, bit for bit; a sort."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser, ShownNoise, order_features, places_in_order
from sdtt_jax.ops.noise import draw_noise
from tests.worlds import LENGTH, MASK, VOCAB, noisy_params, tiny_network

PLAIN = tiny_network()
PARAMS = functools.partial(noisy_params, PLAIN, 1)
TOKENS = np.array([[MASK, 1, MASK], [0, MASK, 2]], np.int32)
_hidden = jax.jit(
    lambda network, params, *noise: network.hidden(params, TOKENS, None, *noise), static_argnums=0
)
_noise = jax.jit(draw_noise, static_argnums=(1, 2, 3))


def coupled(kind: str) -> CoupledDenoiser:
    sizes = dataclasses.asdict(PLAIN.config)
    return CoupledDenoiser(CoupledConfig(**sizes, noise=NoiseConfig(kind, hidden_dim=8)))


@pytest.mark.parametrize("kind", ["full", "two-level", "projected"])
def test_a_new_one_is_the_denoiser_that_it_was_made_from_whatever_the_noise(kind):
    network = coupled(kind)
    params = jax.jit(network.init_from)(PARAMS(), jax.random.key(0))
    assert set(params) == {*PARAMS(), "noise"}
    noise = _noise(jax.random.key(1), TOKENS.shape, VOCAB, network.noise_kind)
    plain = _hidden(PLAIN, PARAMS())
    np.testing.assert_array_equal(_hidden(network, params, noise), plain)
    np.testing.assert_array_equal(_hidden(network, params), plain)


@pytest.mark.parametrize("kind", ["full", "two-level", "projected"])
def test_noise_is_seen_at_masked_positions_alone(kind):
    network = coupled(kind)
    params = noisy_params(network, 2)
    noise, other = (
        jax.device_get(_noise(jax.random.key(seed), TOKENS.shape, VOCAB, network.noise_kind))
        for seed in (1, 2)
    )

    def mixed(at: np.ndarray) -> np.ndarray:
        def choose(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.where(at.reshape(at.shape + (1,) * (x.ndim - 2)), x, y)

        return np.asarray(_hidden(network, params, jax.tree.map(choose, noise, other)))

    masked = TOKENS == MASK
    here = np.asarray(_hidden(network, params, noise))
    np.testing.assert_array_equal(mixed(masked), here)
    assert np.abs(mixed(~masked) - here).max() > 1e-3


def test_the_rank_is_among_what_is_still_masked():
    order = jnp.array([[0.9, 0.5, 0.1]])
    features = order_features(order, jnp.array([[False, True, True]]))
    alone = order_features(jnp.array([[0.0, 0.5, 0.1]]), jnp.array([[False, True, True]]))
    np.testing.assert_array_equal(features[:, 1:], alone[:, 1:])
    assert features.shape == (1, LENGTH, 28)


def test_ranks_are_those_of_a_stable_sort():
    """Also where numbers are equal, as some of a thousand in float32 are."""
    rng = np.random.default_rng(0)
    order = rng.integers(0, 20, (50, 30)).astype(np.float32) / 20
    masked = rng.random(order.shape) < 0.6
    waiting = np.where(masked, -order, 1.0)
    sorted_to = np.argsort(np.argsort(waiting, axis=-1, kind="stable"), axis=-1)
    found = np.asarray(jax.jit(places_in_order)(order, masked))
    np.testing.assert_array_equal(found[masked], sorted_to[masked])


@pytest.mark.parametrize("kind", ["full", "two-level", "projected"])
def test_noise_that_was_shown_once_is_seen_as_it_is_at_every_call(kind):
    """Oracle: the network that reads the noise anew, up to rounding (states are of order 1)."""
    network = coupled(kind)
    params = noisy_params(network, 2)
    noise = _noise(jax.random.key(1), TOKENS.shape, VOCAB, network.noise_kind)
    shown = jax.jit(network.shown)(params, noise)
    assert isinstance(shown, ShownNoise)
    anew = np.asarray(_hidden(network, params, noise))
    np.testing.assert_allclose(_hidden(network, params, shown), anew, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["latent", "masks"])
def test_of_a_value_there_is_nothing_to_read_beforehand(kind):
    network = coupled(kind)
    noise = _noise(jax.random.key(1), TOKENS.shape, VOCAB, network.noise_kind)
    assert network.shown({}, noise) is noise
