"""A denoiser that predicts each token at the position before it, in everything that knows a denoiser.

Oracle: a table of its predictions at all partly masked sequences, made by hand from the logits of the same
network without shift: token i has the logits of position i - 1, and token 0, which has none before it, those
of its own position. Both are asked the same with the same keys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.loss import distillation_terms
from sdtt_jax.distillation.rounds import DistillConfig
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    all_states,
    as_model,
    noisy_params,
    predictions,
    small_llama,
)


def network(*, shift):
    return small_llama(VOCAB, LENGTH, num_layers=1, tied_head=True, shift=shift)


SHIFTED = network(shift=True)
PARAMS = functools.partial(noisy_params, SHIFTED, 2, spread=0.6)
DIFFUSION = MaskedDiffusion(SHIFTED, make_schedule())
_bound = jax.jit(nelbo, static_argnames="diffusion")
_terms = jax.jit(distillation_terms, static_argnames=("diffusion", "config"))
_sample = jax.jit(sample, static_argnames=("diffusion", "config"))


@pytest.fixture(scope="module")
def table():
    straight = np.log(predictions(network(shift=False), PARAMS()))
    moved = np.concatenate([straight[:, :1], straight[:, :-1]], axis=1)
    return MaskedDiffusion(TableDenoiser(), make_schedule()), {"table": moved.astype(np.float32)}


X0 = all_states()[[1, 6, 27 - 1, 9, 36, 41, 2, 5]] % VOCAB


def test_predictions_at_every_state(table):
    _, params = table
    model = as_model(SHIFTED, PARAMS())
    states = all_states()
    found = np.asarray(model.log_probs(states))[..., :VOCAB]
    masked = states == MASK
    np.testing.assert_allclose(found[masked], np.asarray(params["table"])[masked], atol=1e-5)


def test_bound(table):
    diffusion, params = table
    found = _bound(DIFFUSION, PARAMS(), X0, jax.random.key(1))
    assert float(jnp.abs(found).max()) > 0.1
    np.testing.assert_allclose(found, _bound(diffusion, params, X0, jax.random.key(1)), rtol=1e-5)


def test_targets_and_loss_of_a_distillation(table):
    """The table's logits differ in the column of MASK, which no divergence sees."""
    diffusion, params = table
    config = DistillConfig(num_distill_steps=3)
    other = jax.tree.map(lambda x: np.float32(1.3) * np.asarray(x), PARAMS())
    student = np.log(predictions(network(shift=False), other))
    moved = np.concatenate([student[:, :1], student[:, :-1]], axis=1, dtype=np.float32)
    key, dt = jax.random.key(2), np.float32(0.2)
    total, count = _terms(DIFFUSION, other, PARAMS(), X0, dt, key, config)
    expected, same = _terms(diffusion, {"table": moved}, params, X0, dt, key, config)
    assert float(count) == float(same)
    assert float(total) > 0.01
    np.testing.assert_allclose(total, expected, rtol=1e-4)


@pytest.mark.parametrize("given", [(), (0,), (2,)], ids=["nothing", "first", "last"])
def test_texts_and_infillings(table, given):
    diffusion, params = table
    start = np.full((64, LENGTH), MASK, np.int32)
    start[:, list(given)] = 1
    config, key = SamplerConfig(num_steps=2), jax.random.key(3)
    found = _sample(DIFFUSION, PARAMS(), key, start, config)[0].x
    expected = _sample(diffusion, params, key, start, config)[0].x
    np.testing.assert_array_equal(found, expected)
    assert (np.asarray(found)[:, list(given)] == 1).all()
