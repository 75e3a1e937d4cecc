"""Draws from noise that is there in advance. Oracle: the softmax of the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.categorical import BLOCK
from sdtt_jax.ops.noise import draw_noise, every_value, mask_of, noise_given, noisy_argmax
from tests.statistics import assert_fits


@pytest.mark.parametrize(("vocab", "kind"), [(5, "full"), (200, "two-level")])
def test_the_noises_argmax_has_the_distribution_of_the_logits(vocab, kind):
    """n = 20,000, standard error of a frequency at most 3.5e-3, seed 1."""
    logits = 1.5 * jax.random.normal(jax.random.key(0), (vocab,))

    @jax.jit
    def draws(key, logits):
        noise = draw_noise(key, (20_000,), vocab, kind)
        return noisy_argmax(jnp.broadcast_to(logits, (20_000, vocab)), noise)

    tokens = draws(jax.random.key(1), logits)
    exact = np.asarray(jax.nn.softmax(logits), np.float64)
    assert_fits(np.bincount(np.asarray(tokens), minlength=vocab), exact / exact.sum())


def test_two_levels_need_few_numbers():
    noise = draw_noise(jax.random.key(0), (2, 3), 50_257, "two-level")
    assert noise.token.shape == (2, 3, 393)
    assert noise.entry.shape == (2, 3, BLOCK)
    assert draw_noise(jax.random.key(0), (2, 3), 9, "full").entry is None


@pytest.mark.parametrize(("vocab", "kind"), [(5, "full"), (200, "two-level")])
def test_noise_in_hindsight_draws_the_given_tokens_and_has_the_law_of_fresh_noise(vocab, kind):
    """Oracle: what the same noise draws from other logits. n = 20,000, seeds 1 to 3; ties may differ."""
    logits, other = 1.5 * jax.random.normal(jax.random.key(0), (2, vocab))

    @jax.jit
    def draws(key, key_hindsight):
        fresh, again = (draw_noise(k, (20_000,), vocab, kind) for k in (key, key_hindsight))
        log_probs = jnp.broadcast_to(jax.nn.log_softmax(logits), (20_000, vocab))
        tokens = noisy_argmax(log_probs, fresh)
        found = noise_given(log_probs, tokens, again)
        others = (noisy_argmax(jnp.broadcast_to(other, log_probs.shape), n) for n in (fresh, found))
        return tokens, noisy_argmax(log_probs, found), *others

    tokens, drawn, with_fresh, with_found = map(
        np.asarray, draws(jax.random.key(1), jax.random.key(2))
    )
    assert (drawn != tokens).mean() < 1e-4
    exact = np.asarray(jax.nn.softmax(other), np.float64)
    assert_fits(np.bincount(with_found, minlength=vocab), exact / exact.sum())
    # Jointly with the given token, too: both ways to get noise and token have one law.
    pairs = [
        np.bincount(tokens % 5 * 5 + with_ % 5, minlength=25) for with_ in (with_fresh, with_found)
    ]
    seen = np.array(pairs)[:, np.sum(pairs, axis=0) >= 10]
    assert stats.chi2_contingency(seen).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["full", "two-level", "masks:4"])
def test_order_and_tokens_are_drawn_apart(kind):
    """Oracle: no rank correlation of the numbers in the order in which they are drawn. n = 1,000, seed 3."""
    noise = draw_noise(jax.random.key(3), (1000,), 2 * BLOCK, kind)
    if kind == "two-level":
        assert noise.token.shape == (1000, 2)
    tokens = np.argmax(noise.token, axis=-1) if kind == "masks:4" else np.ravel(noise.token)
    assert stats.spearmanr(noise.order, tokens[:1000]).pvalue > 1e-3
    if noise.entry is not None:
        assert stats.spearmanr(np.ravel(noise.entry)[:2000], tokens).pvalue > 1e-3


def test_noise_of_a_token_that_was_all_but_impossible_is_finite():
    log_probs = jnp.array([[0.0, -1e6, -80.0]])
    noise = draw_noise(jax.random.key(0), (1,), 3, "full")
    found = noise_given(log_probs, jnp.array([2]), noise)
    assert np.isfinite(found.token).all()
    assert noisy_argmax(log_probs, found) == 2


@pytest.mark.parametrize("values", [2, 3, 7])
def test_masks_are_equally_likely_and_tell_whose_number_is_the_largest(values):
    """Oracles: the uniform law, however the tokens are shared out, and argmax. n = 50,000, seed 1."""
    noise = draw_noise(jax.random.key(1), (50_000,), 7, "full")
    found = mask_of(noise, values)
    np.testing.assert_array_equal(found.order, noise.order)
    np.testing.assert_array_equal(found.token.sum(axis=-1), 1.0)
    mask = np.argmax(found.token, axis=-1)
    assert_fits(np.bincount(mask, minlength=values), np.full(values, 1 / values))
    tokens = noisy_argmax(jnp.zeros(7), noise)
    if values == 7:
        np.testing.assert_array_equal(mask, tokens)
    assert (mask == tokens % values).mean() > 1.3 / values


def test_a_latent_value_is_one_for_a_whole_text():
    """Oracles: the uniform law, n = 3,000, seed 4; all values of two texts, written out."""
    noise = draw_noise(jax.random.key(4), (3000, 4), 9, "latent:3")
    values = np.argmax(noise.token, axis=-1)
    assert_fits(np.bincount(values[:, 0], minlength=3), np.full(3, 1 / 3))
    assert (values == values[:, :1]).all()
    every = every_value("latent:3", 2, 4)
    np.testing.assert_array_equal(np.argmax(every.token, axis=-1), [[0] * 4, [1] * 4, [2] * 4] * 2)
    assert every.order.shape == (6, 4)
    assert every.token.shape == (6, 4, 3)


def test_more_masks_than_tokens_are_refused():
    noise = draw_noise(jax.random.key(1), (2,), 7, "full")
    with pytest.raises(
        ConfigError, match=r"num_values=8 is more masks than there are tokens \(7\)"
    ):
        mask_of(noise, 8)
