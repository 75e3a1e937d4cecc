"""Likelihoods. Oracles: one prefix after the other, enumeration of all sequences, sums by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.evaluation.likelihood import greedy_infill, judge_texts, nelbo_texts, suffix_nll
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.causal import CausalNetwork
from tests.worlds import LENGTH, MASK, VOCAB, TableDenoiser, noisy_params, predictions, random_table

SCHEDULE = make_schedule()
BOS = 1
WORLD, TABLE = TableDenoiser(), random_table(40)
DIFFUSION = MaskedDiffusion(WORLD, SCHEDULE)


@pytest.fixture(scope="module")
def judge():
    model = CausalNetwork(
        CausalConfig(vocab_size=4, length=3, num_layers=1, embed_dim=8, num_heads=2)
    )
    return model, noisy_params(model, 0, spread=0.7)


def test_scores_do_not_depend_on_the_batch_size(judge):
    model, params = judge
    tokens = np.array(list(itertools.product(range(4), repeat=3)), np.int32)[:10]
    expected = np.asarray(causal_nll(model, params, jnp.asarray(tokens), BOS)).mean(axis=1)
    for batch_size in (3, 10, 16):
        scores = judge_texts(model, params, tokens, BOS, batch_size)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_bound_lies_above_the_negative_log_likelihood():
    """Texts of the best model there is, one that is certain: the bound is 0; else positive."""
    certain = {"table": jnp.full((64, LENGTH, VOCAB), -50.0).at[:, :, 1].set(0.0)}
    texts = np.ones((20, LENGTH), np.int32)
    zero = nelbo_texts(DIFFUSION, certain, texts, jax.random.key(0), 8)
    assert zero.shape == (20,)
    assert np.all(zero == 0)
    uniform = {"table": jnp.zeros((64, LENGTH, VOCAB))}
    many = np.zeros((20_000, LENGTH), np.int32)
    # -log(1/3) at every masked position: n = 20,000, standard error about 0.01, seed 1.
    bound = nelbo_texts(DIFFUSION, uniform, many, jax.random.key(1), 5_000).mean()
    assert bound == pytest.approx(np.log(3), abs=0.05)


def test_suffix_likelihood_sums_over_the_masked_suffix():
    x0 = jnp.array([[2, 0, 1]] * 2)
    x_t = jnp.array([[2, MASK, MASK], [2, 0, MASK]])
    t = jnp.array([0.5, 0.2])
    table = predictions(WORLD, TABLE)
    by_hand = [
        -(
            np.log(table[2 * 16 + MASK * 4 + MASK, 1, 0])
            + np.log(table[2 * 16 + MASK * 4 + MASK, 2, 1])
        )
        / 0.5,
        -np.log(table[2 * 16 + 0 * 4 + MASK, 2, 1]) / 0.2,
    ]
    np.testing.assert_allclose(suffix_nll(DIFFUSION, TABLE, x0, x_t, t), by_hand, rtol=1e-4)


def test_greedy_infill_takes_the_most_probable_tokens():
    x_t = jnp.array([[2, MASK, MASK], [0, 1, 2]])
    filled = np.asarray(greedy_infill(DIFFUSION, TABLE, x_t, jnp.float32(0.5)))
    best = predictions(WORLD, TABLE)[2 * 16 + MASK * 4 + MASK].argmax(axis=-1)
    np.testing.assert_array_equal(filled, [[2, best[1], best[2]], [0, 1, 2]])
