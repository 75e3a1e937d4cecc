"""Nearest neighbours beside a denoiser. Oracle: NumPy, entry by entry."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.likelihood import text_bounds
from sdtt_jax.evaluation.variants import remember
from sdtt_jax.networks.config import COMPUTE_DTYPES
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.networks.retrieval import Datastore, Retrieving
from tests.worlds import LENGTH, MASK, VOCAB, as_model, noisy_params, tiny_network

NETWORK = tiny_network()
PARAMS, RNG = functools.partial(noisy_params, NETWORK, 0), np.random.default_rng(0)
# Texts of a chain that a fresh network knows nothing of: token i + 1 follows token i.
TEXTS = ((RNG.integers(0, VOCAB, (512, 1)) + np.arange(LENGTH)) % VOCAB).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    diffusion = MaskedDiffusion(NETWORK, make_schedule())
    texts = TEXTS[:256]
    keys, valid = remember(diffusion, jax.random.key(0), PARAMS(), 0, texts)
    store = Datastore(keys.reshape(texts.size, -1), texts.ravel(), valid.ravel())
    return {"network": PARAMS(), "store": store}


def test_what_is_masked_is_remembered_with_what_stood_there(params):
    store = params["store"]
    assert store.keys.shape == (256 * LENGTH, 16)
    np.testing.assert_array_equal(store.tokens, TEXTS[:256].ravel())
    assert 0.4 < float(store.valid.mean()) < 0.6


def test_neighbours_are_mixed_in_by_their_distance():
    """Five neighbours, in float64, one query at a time."""
    share, temperature = 0.3, 2.0
    network = Retrieving(NETWORK, neighbours=5, share=share, temperature=temperature)
    # So few different texts have equal states; random numbers of the same size have no ties.
    keys = RNG.normal(size=(300, 16)).astype(np.float32)
    store = Datastore(keys, RNG.integers(0, VOCAB, 300), RNG.random(300) < 0.5)
    params = {"network": PARAMS(), "store": store}
    tokens = np.array([[MASK, 1, MASK], [MASK, MASK, MASK]], np.int32)
    hidden = np.asarray(jax.jit(network.hidden)(params, tokens))
    found = np.asarray(jax.jit(network.logits)(network.head_params(params), hidden))
    own = jax.jit(lambda h: jax.nn.softmax(NETWORK.logits(PARAMS(), h)[..., :VOCAB]))(hidden)
    own = np.asarray(own, np.float64)
    keys, said = keys[store.valid].astype(float), store.tokens[store.valid]
    for place in np.ndindex(2, LENGTH):
        distance = np.square(keys - hidden[place].astype(float)).sum(axis=-1)
        nearest = np.argsort(distance)[:5]
        weight = np.exp(-(distance[nearest] - distance[nearest[0]]) / temperature)
        near = np.bincount(said[nearest], weight / weight.sum(), VOCAB)
        expected = (1 - share) * own[place] + share * near
        np.testing.assert_allclose(np.exp(found[place][:VOCAB]), expected, atol=1e-4)
    assert (found[..., VOCAB:] < -1e4).all()


def test_it_is_judged_by_the_bound_like_any_denoiser(params):
    """Held-out texts of the same chain, which the datastore knows and the network does not."""

    def bound(share):
        model = as_model(Retrieving(NETWORK, share=share), params)
        config = BoundConfig("low-variance", 2)
        [estimate] = text_bounds(model, TEXTS[256:], jax.random.key(1), config, batch_size=256)
        return estimate().nelbo.mean()

    model = as_model(NETWORK, PARAMS())
    config = BoundConfig("low-variance", 2)
    [plain] = text_bounds(model, TEXTS[256:], jax.random.key(1), config, batch_size=256)
    assert bound(0.0) == pytest.approx(plain().nelbo.mean(), abs=1e-5)
    assert bound(0.8) < bound(0.0) - 0.2


@pytest.mark.parametrize("compute_dtype", COMPUTE_DTYPES)
def test_a_model_with_neighbours_writes_in_every_dtype(params, compute_dtype):
    """Its texts follow the chain."""
    config = dataclasses.replace(NETWORK.config, compute_dtype=compute_dtype)
    model = as_model(Retrieving(Denoiser(config), share=0.9), params)
    sampler = SamplerConfig(LENGTH, mode="first-hitting")
    state = model.denoise(jax.random.key(2), model.prior(64), sampler)
    follows = (np.diff(state.x, axis=1) % VOCAB == 1).mean()
    assert follows > 0.5  # a third by chance


def test_a_smaller_datastore_has_fewer_neighbours():
    """Equally near ones share the weight at the lowest temperature too: 16 divided by it is infinite."""
    store = Datastore(np.ones((2, 16), np.float32), np.array([0, 1]), np.array([True, True]))
    network = Retrieving(NETWORK, neighbours=16, share=0.5, temperature=1.2e-38)
    near = jax.jit(network._near)(store, np.ones((3, 16), np.float32))
    np.testing.assert_allclose(near, np.tile([0.5, 0.5, 0.0], (3, 1)), atol=1e-6)
    apart = dataclasses.replace(store, keys=np.array([[2.0] * 16, [1.5] * 16], np.float32))
    near = jax.jit(Retrieving(NETWORK, neighbours=1)._near)(apart, np.ones((3, 16), np.float32))
    np.testing.assert_array_equal(near, np.tile([0.0, 1.0, 0.0], (3, 1)))
    with pytest.raises(ConfigError, match="share must lie in"):
        Retrieving(NETWORK, share=1.0)
    with pytest.raises(ConfigError, match=r"temperature must be 1\.2e-38 or more"):
        Retrieving(NETWORK, temperature=1e-40)
