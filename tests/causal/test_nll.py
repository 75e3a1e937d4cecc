"""Likelihood of text under a causal network. Oracles: one prefix at a time, all sequences at once."""

import functools
import itertools

import jax
import numpy as np
import pytest

from sdtt_jax.causal.nll import causal_loss, causal_nll, next_token_nll, next_token_scores
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.causal import CausalNetwork
from tests.worlds import noisy_params, tiny_network

BOS = 1


@pytest.fixture(scope="module")
def judge():
    model = CausalNetwork(
        CausalConfig(vocab_size=4, length=3, num_layers=1, embed_dim=8, num_heads=2)
    )
    return model, noisy_params(model, 0, spread=0.7)


@functools.partial(jax.jit, static_argnames="model")
def _nll(model, params, tokens):
    return causal_nll(model, params, tokens, BOS)


@functools.partial(jax.jit, static_argnames="model")
def _logits(model, params, tokens):
    return model.logits(params, model.hidden(params, tokens))


def test_each_token_is_scored_from_the_tokens_before_it(judge):
    model, params = judge
    tokens = np.array([[3, 0, 2]], np.int32)
    nll = np.asarray(_nll(model, params, tokens))[0]
    for i in range(3):
        prefix = np.array([[BOS, *tokens[0, :i]]], np.int32)
        logits = np.asarray(_logits(model, params, prefix), np.float64)[0, -1, :4]
        expected = np.log(np.exp(logits).sum()) - logits[tokens[0, i]]
        assert nll[i] == pytest.approx(expected, rel=1e-5)


def test_probabilities_of_all_sequences_sum_to_one(judge):
    model, params = judge
    tokens = np.array(list(itertools.product(range(4), repeat=3)), np.int32)
    nll = np.asarray(_nll(model, params, tokens), np.float64).sum(axis=1)
    assert np.exp(-nll).sum() == pytest.approx(1.0, abs=1e-5)


def test_scores_of_given_rows_are_those_of_whole_texts(judge):
    """The same tokens as inputs and targets of rows; unscored positions have 0 nats and are no misses."""
    model, params = judge
    tokens = np.array(list(itertools.product(range(4), repeat=3)), np.int32)
    inputs = np.concatenate([np.full_like(tokens[:, :1], BOS), tokens[:, :2]], axis=1)
    scored = np.broadcast_to(np.arange(3) > 0, tokens.shape)

    @jax.jit
    def both(params, *rows):
        return next_token_scores(model, params, *rows), next_token_nll(model, params, *rows)

    (nll, missed), alone = both(params, inputs, tokens, scored)
    expected = np.where(scored, _nll(model, params, tokens), 0)
    np.testing.assert_allclose(nll, expected, rtol=1e-6)
    np.testing.assert_allclose(alone, expected, rtol=1e-6)
    best = np.asarray(_logits(model, params, inputs))[..., :4].argmax(axis=-1)
    np.testing.assert_array_equal(missed, scored & (best != tokens))


def test_the_loss_to_train_on_is_the_sum(judge):
    model, params = judge
    tokens = np.array([[3, 0, 2], [1, 1, 0]], np.int32)
    total = jax.jit(lambda params, tokens: causal_loss(model, params, tokens, BOS))(params, tokens)
    expected = np.asarray(_nll(model, params, tokens), np.float64).sum()
    assert float(total) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("score", [causal_nll, causal_loss])
@pytest.mark.parametrize("bos_id", [-1, 4])
def test_a_beginning_that_is_no_token_is_refused(judge, bos_id, score):
    """An index beyond the embedding would be silently clipped: the first token would follow another one."""
    with pytest.raises(ConfigError, match=r"bos_id must lie in \[0, 4\)"):
        score(*judge, np.zeros((1, 3), np.int32), bos_id)


def test_a_denoiser_has_no_causal_likelihood():
    """It sees the tokens that it would predict, and gave a number. Oracle: the kind of network."""
    network = tiny_network()
    for score in (causal_nll, causal_loss):
        with pytest.raises(
            ConfigError, match="network must be of type CausalNetwork, not Denoiser"
        ):
            score(network, noisy_params(network, 0), np.zeros((1, 3), np.int32), 0)
