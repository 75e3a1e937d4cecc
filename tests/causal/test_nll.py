"""Likelihood of text under a causal network. Oracles: one prefix after the other, all sequences at once."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.causal import CausalNetwork
from tests.worlds import noisy_params

BOS = 1


@pytest.fixture(scope="module")
def judge():
    model = CausalNetwork(
        CausalConfig(vocab_size=4, length=3, num_layers=1, embed_dim=8, num_heads=2)
    )
    return model, noisy_params(model, 0, spread=0.7)


def test_each_token_is_scored_from_the_tokens_before_it(judge):
    model, params = judge
    tokens = np.array([[3, 0, 2]], np.int32)
    nll = np.asarray(causal_nll(model, params, jnp.asarray(tokens), BOS))[0]
    for i in range(3):
        prefix = jnp.array([[BOS, *tokens[0, :i]]])
        logits = np.asarray(model.logits(params, model.hidden(params, prefix)), np.float64)[
            0, -1, :4
        ]
        expected = np.log(np.exp(logits).sum()) - logits[tokens[0, i]]
        assert nll[i] == pytest.approx(expected, rel=1e-5)


def test_probabilities_of_all_sequences_sum_to_one(judge):
    model, params = judge
    tokens = jnp.array(list(itertools.product(range(4), repeat=3)))
    nll = np.asarray(causal_nll(model, params, tokens, BOS), np.float64).sum(axis=1)
    assert np.exp(-nll).sum() == pytest.approx(1.0, abs=1e-5)
