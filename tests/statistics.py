"""Comparing sampled counts with exact probabilities."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Fit(NamedTuple):
    """How well counts fit probabilities.

    Attributes:
      p_value: that of the chi-square statistic, with outcomes of fewer than 5 expected merged into one.
      max_z: the largest |frequency - probability| in standard errors, sqrt(p (1 - p) / n).
    """

    p_value: float
    max_z: float


def fit(counts: np.ndarray, probabilities: np.ndarray) -> Fit:
    """How well counts fit probabilities, `[outcomes]` each; impossible outcomes must have count zero."""
    assert abs(probabilities.sum() - 1) < 1e-6, probabilities.sum()
    assert counts[probabilities == 0].sum() == 0, "an impossible outcome was drawn"
    n = counts.sum()
    expected = n * probabilities
    common = expected >= 5
    seen = np.append(counts[common], counts[~common].sum())
    hoped = np.append(expected[common], expected[~common].sum())
    if hoped[-1] < 5:  # too few even together: merge them with the smallest of the others
        smallest = int(hoped[:-1].argmin())
        seen[smallest] += seen[-1]
        hoped[smallest] += hoped[-1]
        seen, hoped = seen[:-1], hoped[:-1]
    assert len(hoped) > 1, "one outcome is all but certain: there is nothing to compare"
    chi_square = ((seen - hoped) ** 2 / hoped).sum()
    error = np.sqrt(np.maximum(hoped * (1 - hoped / n), 1e-12))
    return Fit(
        float(stats.chi2.sf(chi_square, len(hoped) - 1)), float((abs(seen - hoped) / error).max())
    )


def assert_fits(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Asserts that counts fit probabilities; with fixed seeds, chance cannot make it fail now and then.

    For a correct sampler and a seed chosen blindly, each bound fails with probability below 1e-3.
    """
    found = fit(counts, probabilities)
    assert found.p_value > 1e-3, found
    assert found.max_z < 5.0, found
