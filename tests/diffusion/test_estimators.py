"""Estimators of the bound of one masking. Oracles: sums by hand over a table, integrals by SciPy.

Their means are compared with the exact integral in tests/evaluation/test_likelihood.py.
"""

import functools

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.estimators import (
    ESTIMATORS,
    NEVER,
    BoundConfig,
    Masking,
    MaskNoise,
    count_weight,
    masking_bound,
)
from sdtt_jax.diffusion.nelbo import nelbo_weight
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.errors import ConfigError
from tests.worlds import MASK, TableDenoiser, predictions, random_table

SCHEDULE = make_schedule()
WORLD, TABLE = TableDenoiser(), random_table(40)
DIFFUSION = MaskedDiffusion(WORLD, SCHEDULE)


@functools.partial(jax.jit, static_argnames=("estimator", "diffusion"))
def _mask(estimator, x0, noise, diffusion=DIFFUSION):
    return ESTIMATORS[estimator].mask(diffusion, x0, noise)


def test_a_masking_counts_what_it_masks_by_its_weight():
    """Sums by hand over the masked tokens of a suffix; a MASK in the row itself is not predicted."""
    x0 = np.array([[2, 0, 1], [2, 0, 1], [2, 0, MASK]], np.int32)
    x_t = np.array([[2, MASK, MASK], [2, 0, MASK], [2, MASK, MASK]], np.int32)

    @jax.jit
    def bound(x0, x_t, t):
        masking = Masking(x_t, SCHEDULE.sigma(t), nelbo_weight(SCHEDULE, t))
        return masking_bound(DIFFUSION, TABLE, x0, masking)

    table = predictions(WORLD, TABLE)
    both = table[2 * 16 + MASK * 4 + MASK]
    expected = [
        -(np.log(both[1, 0]) + np.log(both[2, 1])) / 0.5,
        -np.log(table[2 * 16 + 0 * 4 + MASK, 2, 1]) / 0.2,
        -np.log(both[1, 0]) / 0.5,
    ]
    found = bound(x0, x_t, np.array([0.5, 0.2, 0.5], np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_tokens_that_never_mask_are_given(estimator):
    """Oracle: the noise itself; of 64 rows a prefix of one token stays, whatever the estimator."""
    rng = np.random.default_rng(0)
    tokens = rng.random((64, 3), np.float32)
    tokens[:, 0] = NEVER
    x0 = np.tile(np.array([2, 0, 1], np.int32), (64, 1))
    x_t = np.asarray(_mask(estimator, x0, MaskNoise(rng.random(64, np.float32), tokens)).x_t)
    assert np.all(x_t[:, 0] == 2)
    assert np.any(x_t[:, 1:] == MASK)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_row_in_which_nothing_may_be_masked_is_worth_nothing(estimator):
    """Beside a row that may be masked: it stays as it is, and its bound is 0, where 0 · NaN was NaN."""
    x0 = np.array([[2, 0, 1], [2, 0, 1]], np.int32)
    tokens = np.array([[NEVER] * 3, [0.7, 0.1, 0.4]], np.float32)
    masking = _mask(estimator, x0, MaskNoise(np.array([0.9, 0.9], np.float32), tokens))
    bound = jax.jit(lambda x, m: masking_bound(DIFFUSION, TABLE, x, m))(x0, masking)
    np.testing.assert_array_equal(masking.x_t[0], x0[0])
    assert np.isfinite(masking.sigma).all()
    assert np.isfinite(masking.weight).all()
    assert np.any(masking.x_t[1] == MASK)
    assert bound[0] == 0 < bound[1]


@pytest.mark.parametrize("estimator", ["low-variance", "counts"])
def test_counts_mask_as_many_tokens_as_they_say(estimator):
    """u = (n - 1/2) / L masks n of L tokens, those with the smallest noise."""
    u = np.array([1 / 6, 3 / 6, 5 / 6], np.float32)
    tokens = np.tile(np.array([0.7, 0.1, 0.4], np.float32), (3, 1))
    masking = jax.device_get(_mask(estimator, np.zeros((3, 3), np.int32), MaskNoise(u, tokens)))
    expected = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(masking.x_t == MASK, expected)
    np.testing.assert_allclose(-np.expm1(-masking.sigma), [0.1, 0.4, 0.7], rtol=1e-5)
    n, whole = np.array([1, 2, 3]), estimator == "counts"
    wanted = 3 / n if whole else count_weight(n, 3, 0.999e-5, 0.999)
    np.testing.assert_allclose(masking.weight, wanted, rtol=1e-6)
    assert (masking.weight[-1] == 1) == whole


def test_weights_of_counts_are_integrals_over_the_schedule():
    """Oracle: quadrature. With move chances from 0 to 1 the weight of n masked tokens is L / n."""
    length, low, high = 64, 1e-5, 0.999
    n = np.arange(1, length + 1)
    weights = np.asarray(count_weight(n, length, low, high))
    for count in (1, 17, 60, 64):
        chance = lambda m, count=count: stats.binom.pmf(count, length, m) / m  # noqa: E731
        expected = length * integrate.quad(chance, low, high, points=[count / length])[0]
        assert weights[count - 1] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(weights[:49], length / n[:49], rtol=1e-3)
    assert weights[-1] < 1
    np.testing.assert_allclose(count_weight(n, length, 0.0, 1.0), length / n, rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_schedule_that_masks_little_makes_no_smaller_bound(estimator):
    """Under a uniform law over V tokens -log p is exactly log V a token, so weight × share masked has mean 1.

    "geometric" masks 0.1 to 63 % of a text; an integral over these alone was 0.64. A time-conditioned network
    is told no times but its own. 2^16 rows, 3 tokens each.
    """
    schedule, rows, rng = (
        make_schedule(ScheduleConfig("geometric")),
        2**16,
        np.random.default_rng(0),
    )
    u = ((np.arange(rows) + 0.5) / rows).astype(np.float32)
    noise = MaskNoise(u, rng.random((rows, 3), np.float32))
    diffusion = MaskedDiffusion(WORLD, schedule)
    masking = jax.device_get(_mask(estimator, np.zeros((rows, 3), np.int32), noise, diffusion))
    shares = masking.weight * (masking.x_t == MASK).mean(axis=1)
    assert shares.mean() == pytest.approx(1.0, abs=0.03)
    assert masking.sigma.min() >= 0.99e-3
    assert masking.sigma.max() <= 1.0


def test_what_cannot_be_estimated_is_named():
    for arguments, named in (
        ({"estimator": "exact"}, "estimator='exact' is unknown; choose one of independent"),
        ({"num_maskings": 0}, "num_maskings must be positive, not 0"),
    ):
        with pytest.raises(ConfigError, match=named):
            BoundConfig(**arguments)
