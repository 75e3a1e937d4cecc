"""The order of positions by their scores. Oracles: scores known to tie or to differ; equal chances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.decoders.confident import (
    Confidence,
    EntropyBounded,
    bounded_pick,
    confidence,
    confident_pick,
    negative_entropy,
    sure_enough,
)
from sdtt_jax.diffusion.decoders.ranking import falling_order, noise_scale, without_rounding

DRAWS, ALIKE = 4000, 8
ALL = jnp.ones((DRAWS, ALIKE), bool)
# A quarter is taken; standard error of a share 6.8e-3.
QUARTER, ERROR = 4, 6.8e-3


def alike(probabilities):
    """Log-probabilities of positions that differ by what the machine rounds: `[ALIKE, vocab]` float32."""
    noise = 2e-7 * np.random.default_rng(0).normal(size=(ALIKE, len(probabilities)))
    return jax.nn.log_softmax(jnp.asarray(np.log(probabilities) + noise, jnp.float32))


def shares(options, score):
    """In how many draws each position is taken."""
    score = jnp.broadcast_to(score, (DRAWS, ALIKE))
    pick_of = confident_pick if isinstance(options, Confidence) else bounded_pick
    pick = pick_of(options, jax.random.key(7), jnp.int32(QUARTER))
    found = np.asarray(pick.accept(score, ALL))
    np.testing.assert_array_equal(found.sum(axis=1), ALIKE // QUARTER)
    return found.mean(axis=0)


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-4, 1e-2], ids="ahead by {}".format)
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_positions_that_are_alike_come_at_random_whatever_their_margin(gap, scale):
    """4,000 draws, seed 7. The margin of two tokens that are nearly equal is all rounding."""
    log_probs, options = alike([0.4 * (1 + gap), 0.4, 0.2]), Confidence("margin", 0.0, scale)
    found = shares(options, confidence(options, log_probs))
    np.testing.assert_allclose(found, 1 / QUARTER, atol=4 * ERROR)


@pytest.mark.parametrize("scale", [1e-50, 1e-10, 1e-7, 1e-5, 1e-3, 1.0, 1e20, 3e38])
def test_no_scale_of_the_noise_prefers_a_position_among_equals(scale):
    """4,000 draws, seed 7. Too small for float32, it took the first ones; too large, it took fewer."""
    score = confidence(Confidence(), alike([0.4, 0.3, 0.3]))
    found = shares(Confidence(order_temperature=scale), score)
    np.testing.assert_allclose(found, 1 / QUARTER, atol=4 * ERROR)


def test_noise_beyond_float32_takes_none_that_is_not_due():
    options, due = Confidence(order_temperature=3e38), ALL.at[:, ::2].set(False)
    pick = confident_pick(options, jax.random.key(7), jnp.int32(2))
    found = pick.accept(jnp.zeros(ALL.shape), due)
    np.testing.assert_array_equal(found.sum(axis=1), ALIKE // 4)
    assert not (found & ~due).any()


@pytest.mark.parametrize("margin", [False, True])
def test_ties_are_found_wherever_the_scores_lie(margin):
    """Groups of scores 1e-6 wide, at 1,000 places: no grid cuts through one."""
    places = np.random.default_rng(1).uniform(-3, -1, (1000, 2)) - [0.0, 2.5]
    score = jnp.asarray(places[:, :, None] - 1e-6 * np.arange(4), jnp.float32).reshape(1000, 8)
    level = np.asarray(without_rounding(score, jnp.ones(score.shape, bool), margin=margin))
    np.testing.assert_array_equal(np.ptp(level.reshape(1000, 2, 4), axis=-1), 0)
    assert (level[:, 0] > level[:, 4]).all()


def test_where_scores_lie_close_together_ties_stay_narrow():
    """1,000 scores 1e-6 apart: ties differ by less than 1e-4, and a larger one never comes later."""
    score = -jnp.arange(1000, dtype=jnp.float32)[None] * 1e-6 - 0.3
    level = np.asarray(without_rounding(score, jnp.ones(score.shape, bool), margin=False))[0]
    assert (np.diff(level) <= 0).all()
    assert np.abs(level - np.asarray(score[0])).max() < 1.02e-4


def test_what_differs_is_ordered():
    score = jnp.log(jnp.array([[0.2, 0.5, 0.4999, 0.3, 0.9]]))
    due = jnp.array([[True, True, True, True, False]])
    for margin in (False, True):
        order = falling_order(jax.random.key(0), score, due, 0.0, margin=margin)
        assert order.tolist() == [[1, 2, 3, 0, 4]]
    assert noise_scale(0.5) == 0.5


@pytest.mark.parametrize("left", [4.45e-5, 6.9e-5])
def test_small_entropies_are_added_up_as_they_are(left):
    """1,024 positions of the same entropy: as many as the bound divided by it, and one."""
    probabilities = np.array([1 - left, left])
    nats = -(probabilities * np.log(probabilities)).sum()
    log_probs = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32)), (1024, 2))
    due, score = jnp.ones((1, 1024), bool), negative_entropy(EntropyBounded(), log_probs)[None]
    for bound in (0.0, 0.01, 0.05):
        options = EntropyBounded(bound)
        found = bounded_pick(options, jax.random.key(0), jnp.int32(4)).accept(score, due)
        assert int(found.sum()) == pytest.approx(1 + bound // nats, abs=1)


def test_a_threshold_is_compared_with_the_probability_itself():
    """Of 0.99986 and 0.99995, one reaches 0.9999; to four digits of its logarithm, both did."""
    options = Confidence(threshold=0.9999)
    log_probs = jnp.log(jnp.array([[0.99986, 0.00014], [0.99995, 0.00005]]))
    score, due = confidence(options, log_probs), jnp.ones((1, 2), bool)
    assert sure_enough(options, score).tolist() == [False, True]
    found = confident_pick(options, jax.random.key(0), jnp.int32(2)).accept(score[None], due)
    assert found.tolist() == [[False, True]]


@pytest.mark.parametrize("score", ["probability", "margin", "entropy"])
def test_a_vocabulary_of_one_token_is_certain(score):
    found = confidence(Confidence(score), jnp.zeros((3, 1)))
    np.testing.assert_array_equal(found, 0)


def test_a_margin_sorts_no_whole_rows():
    """Oracle: the compiled program, which selects two; sorting 256 × 50k numbers takes 130 times as long."""
    score = jax.jit(lambda log_probs: confidence(Confidence("margin"), log_probs))
    assert " sort(" not in score.lower(jnp.zeros((4, 300))).compile().as_text()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_first_position_has_the_softmax_of_the_scores_over_the_temperature(temperature):
    """4,000 draws, seed 8, standard error at most 8e-3: the law of a largest score with Gumbel noise."""
    score = np.log(np.float32([0.9, 0.5, 0.3, 0.1, 0.05, 0.8, 0.6, 0.2]))
    order = falling_order(
        jax.random.key(8), jnp.broadcast_to(score, ALL.shape), ALL, temperature, margin=False
    )
    expected = np.exp(score / temperature) / np.exp(score / temperature).sum()
    found = np.bincount(np.asarray(order[:, 0]), minlength=ALIKE) / DRAWS
    np.testing.assert_allclose(found, expected, atol=4 * 8e-3)
