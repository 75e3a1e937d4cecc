"""Percentile intervals by resampling texts: texts are what is independent, tokens within one are not."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CHUNK = 1 << 22  # numbers drawn at once


class Interval(NamedTuple):
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """`name`, `name_low` and `name_high`, as a record has them."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap(
    statistic: Callable[..., np.ndarray],
    *columns: np.ndarray,
    seed: int,
    resamples: int = 2000,
) -> Interval:
    """A statistic of some texts and its interval.

    Args:
      statistic: of one or several `[..., texts]`, reduces the last axis.
      *columns: `[texts]` each; row i of all of them belongs to text i.
      seed: of the resampling.
      resamples: how many.
    """
    columns = tuple(np.asarray(column, np.float64) for column in columns)
    size = len(columns[0])
    rng = np.random.default_rng(seed)
    values = []
    at_once = max(CHUNK // size, 1)
    for start in range(0, resamples, at_once):
        picks = rng.integers(0, size, size=(min(at_once, resamples - start), size))
        values.append(statistic(*(column[picks] for column in columns)))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return Interval(float(statistic(*columns)), float(low), float(high))


def mean(values: np.ndarray) -> np.ndarray:
    """Over texts."""
    return np.asarray(values.mean(axis=-1))


def exp_mean(values: np.ndarray) -> np.ndarray:
    """Perplexity over the tokens of texts of equal length, from nats per token of each."""
    return np.asarray(np.exp(values.mean(axis=-1)))


def exp_median(values: np.ndarray) -> np.ndarray:
    """The perplexity of the text in the middle."""
    return np.asarray(np.exp(np.median(values, axis=-1)))


def exp_ratio(nll: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Perplexity over all tokens, from the nats and the tokens of each text."""
    return np.asarray(np.exp(nll.sum(axis=-1) / count.sum(axis=-1)))
