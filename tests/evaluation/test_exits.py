"""Calibration of early exits. Oracles: exact binomial sums, and many calibrations of known losses."""

import jax
import numpy as np
import pytest
from scipy import stats

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.exits import THRESHOLDS, calibrate, hoeffding_bentkus, learn_then_test
from tests.networks.test_exiting import LAYERS, LENGTH, NETWORK, PARAMS, VOCAB
from tests.worlds import TableDenoiser, as_model, random_table


@pytest.mark.parametrize(("count", "bound"), [(50, 0.1), (200, 0.05), (500, 0.3)])
def test_a_p_value_is_small_no_more_often_than_it_says(count, bound):
    """Over all outcomes of losses of 0 and 1 whose expectation is the bound."""
    hits = np.arange(count + 1)
    p = np.array([hoeffding_bentkus(k / count, count, bound) for k in hits])
    chance = stats.binom.pmf(hits, count, bound)
    for level in (0.01, 0.05, 0.1, 0.5):
        assert chance[p <= level].sum() <= level
    assert (np.diff(p) >= -1e-12).all()
    assert p[0] == pytest.approx((1 - bound) ** count)


def test_the_promise_is_kept_as_often_as_it_says():
    """1,000 calibrations on 300 texts, losses that rise with the setting; standard error 0.0095, seed 0."""
    rng, bound, failure = np.random.default_rng(0), 0.1, 0.1
    expected = np.linspace(0, 0.3, 31)
    wrong, chosen = 0, []
    for _ in range(1_000):
        losses = rng.random((300, 1)) < expected
        column = learn_then_test(losses, bound, failure)
        wrong += expected[column] > bound
        chosen.append(expected[column])
    assert wrong / 1_000 <= failure + 3 * 0.0095
    assert np.mean(chosen) > 0.05  # and the test is not merely cautious


def test_the_threshold_follows_from_the_texts():
    """With 400 texts, a bound that every threshold keeps gives the lowest threshold; a strict bound, none."""
    model = as_model(NETWORK, PARAMS)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (400, LENGTH)).astype(np.int32)
    key, loose, strict = jax.random.key(0), 0.99, 1e-4
    found = calibrate(model, tokens, key, bound=loose, least=1, batch_size=400)
    assert found.threshold == min(THRESHOLDS)
    assert 1 <= found.layers < LAYERS
    assert 0 < found.disagreement < loose
    never = calibrate(model, tokens, key, bound=strict, least=1, batch_size=400)
    assert never == (THRESHOLDS[0], 0.0, LAYERS)


def test_other_networks_have_no_exits():
    model = as_model(TableDenoiser(), random_table(0))
    with pytest.raises(ConfigError, match="networks of the kind Denoiser"):
        calibrate(model, np.zeros((2, 3), np.int32), jax.random.key(0))
