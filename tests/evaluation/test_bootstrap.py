"""Intervals. Oracles: a single text has none; SciPy's exact intervals; sums by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.bootstrap import (
    Interval,
    bootstrap,
    exp_mean,
    mean,
    share,
    with_interval,
)
from sdtt_jax.evaluation.quality import paired_log_ratio
from sdtt_jax.evaluation.suites.likelihood import summary


@pytest.mark.parametrize(
    "interval",
    [
        bootstrap(mean, np.array([3.0]), seed=0),
        share(np.array([True]), seed=0),
        paired_log_ratio(np.array([3.0]), np.array([2.0]), seed=0),
    ],
    ids=["mean", "share", "pair"],
)
def test_a_single_text_has_no_interval(interval):
    assert math.isfinite(interval.value)
    assert interval.ends == (None, None)
    named = interval.named("figure")
    assert named == {"figure": interval.value, "figure_low": None, "figure_high": None}
    assert with_interval(named, "figure", 2) == f"{interval.value:.2f} (no interval)"


def test_what_is_beyond_float64_is_said_to_be():
    beyond = {"figure": None, "figure_low": 3.0, "figure_high": None}  # as JSON has it
    assert with_interval(beyond, "figure", 1) == "∞ (3.0–∞)"
    assert summary(np.full((2, 1), 1e4), seed=0)["perplexity"] == math.inf


def test_no_text_is_refused():
    with pytest.raises(ConfigError, match="no texts"):
        bootstrap(mean, np.array([]), seed=0)


@pytest.mark.parametrize("hits", [[True] * 5, [False] * 5, [True, False]])
def test_hits_that_are_all_alike_do_not_make_it_certain(hits):
    exact = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="exact")
    interval = share(np.array(hits), seed=0)
    if len({*hits}) == 1:
        # One end is 0 or 1 and cannot miss, so the other may miss in 2.5 %, as in two-sided intervals.
        np.testing.assert_allclose(interval[1:], [exact.low, exact.high], rtol=1e-12)
    else:
        assert interval.low < interval.value < interval.high


def test_the_estimators_own_error_is_in_the_interval():
    """Three texts; one of the four maskings has all the loss: Student's t with three degrees of freedom."""
    estimates = np.zeros((3, 4))
    estimates[:, 1] = [2.0, 2.2, 1.8]
    result = summary(estimates, seed=0)
    assert result["nelbo"] == pytest.approx(0.5)
    assert result["masking_error"] == pytest.approx(0.5)
    assert result["nelbo_high"] == pytest.approx(0.5 + stats.t(3).ppf(0.975) * 0.5)
    assert result["nelbo_low"] == 0, "no bound is negative"
    assert result["perplexity_high"] == pytest.approx(math.exp(result["nelbo_high"]))


def test_many_texts_have_the_interval_over_texts():
    estimates = np.random.default_rng(0).normal(3.0, 1.0, (400, 1)) + np.zeros((1, 8))
    estimates += np.random.default_rng(1).normal(0.0, 0.1, estimates.shape)
    result = summary(estimates, seed=0)
    plain = bootstrap(mean, estimates.mean(axis=1), seed=0)
    assert (result["nelbo_low"], result["nelbo_high"]) == (plain.low, plain.high)


def test_the_perplexity_of_two_texts_lies_between_those_of_each():
    """Their geometric mean. A quarter of the samples holds one of them alone, twice."""
    found = bootstrap(exp_mean, np.log([2.0, 8.0]), seed=0)
    assert found == pytest.approx((4.0, 2.0, 8.0))


def test_nothing_becomes_of_no_interval():
    assert Interval(1.0, math.nan, math.nan).widened(0.5, 4).ends == (None, None)
    one = summary(np.array([[1.0, 3.0]]), seed=0)
    assert (one["perplexity_low"], one["bits_per_token_high"]) == (None, None)
    assert one["masking_error"] == pytest.approx(1.0)
