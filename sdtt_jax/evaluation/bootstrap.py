"""Percentile intervals by resampling texts: texts are what is independent, tokens within one are not."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sdtt_jax.config import require

CHUNK = 1 << 22  # numbers drawn at once


class Interval(NamedTuple):
    """An estimate and its 95 % interval, which is NaN where there is none: over a single text."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Low and high, as JSON has them: None where there is no interval."""
        known = not math.isnan(self.low)
        return (self.low, self.high) if known else (None, None)

    def named(self, name: str) -> dict[str, float | None]:
        """`name`, `name_low` and `name_high`, as a record has them."""
        low, high = self.ends
        return {name: self.value, f"{name}_low": low, f"{name}_high": high}

    def widened(self, error: float, samples: int) -> "Interval":
        """At least as wide as the estimator's own error makes it; nothing becomes of no interval.

        Args:
          error: standard error of `value` from the estimator's noise alone.
          samples: how many independent values it was taken from, at least 2: Student's t has one less.
        """
        from scipy.special import stdtrit  # 0.4 s of the start of every program that measures

        reach = float(stdtrit(samples - 1, 0.975)) * error
        return self._replace(
            low=min(self.low, self.value - reach), high=max(self.high, self.value + reach)
        )


def said(result: Mapping[str, Any], name: str, digits: int) -> str:
    """A figure of a record with its interval, in words.

    Args:
      result: has `name`, and `name_low` and `name_high`, which are both None where there is no interval; one
        that is None alone is beyond float64.
      name: of the figure.
      digits: after the point.
    """
    ends = [result[f"{name}{end}"] for end in ("", "_low", "_high")]
    value, low, high = ("∞" if end is None else f"{end:.{digits}f}" for end in ends)
    return f"{value} ({'no interval' if ends[1:] == [None, None] else f'{low}–{high}'})"


def bootstrap(
    statistic: Callable[..., np.ndarray], *columns: np.ndarray, seed: int, resamples: int = 2000
) -> Interval:
    """A statistic of some texts and its interval; a single text has none.

    Args:
      statistic: of one or several `[..., texts]`, reduces the last axis.
      *columns: `[texts]` each; row i of all of them belongs to text i.
      seed: of the resampling.
      resamples: how many.

    Raises:
      ConfigError: no texts.
    """
    columns = tuple(np.asarray(column, np.float64) for column in columns)
    size = len(columns[0])
    require(size > 0, "there are no texts to estimate anything from.")
    if size == 1:
        return Interval(float(statistic(*columns)), math.nan, math.nan)
    rng = np.random.default_rng(seed)
    values = []
    at_once = max(CHUNK // size, 1)
    for start in range(0, resamples, at_once):
        picks = rng.integers(0, size, size=(min(at_once, resamples - start), size))
        values.append(statistic(*(column[picks] for column in columns)))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return Interval(float(statistic(*columns)), float(low), float(high))


def share(hits: np.ndarray, *, seed: int) -> Interval:
    """How many of `hits: [texts] bool` there are, from 0 to 1.

    Where all are alike, resampling knows of nothing else: the interval then reaches to the share from which
    so many alike come with a chance of 2.5 % (Clopper and Pearson's).
    """
    interval = bootstrap(mean, hits, seed=seed)
    rare = 0.025 ** (1 / len(hits))
    if len(hits) > 1 and interval.value in (0.0, 1.0):
        return interval._replace(low=rare) if interval.value else interval._replace(high=1 - rare)
    return interval


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
