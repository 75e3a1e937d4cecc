"""Percentile intervals by resampling texts as if they were independent; tokens within one text are not.

Generated texts are. Neighbouring sequences of packed real text belong to one document: intervals of held-out
text are for sequences like these, and miss the value of a whole file more often than 5 times in 100.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sdtt_jax.config import require

RESAMPLES = 2000
CHUNK = 1 << 22  # numbers drawn at once


class Interval(NamedTuple):
    """An estimate and its 95 % interval, which is NaN for a single text."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Low and high for JSON: None if there is no interval."""
        known = not math.isnan(self.low)
        return (self.low, self.high) if known else (None, None)

    def named(self, name: str) -> dict[str, float | None]:
        """The record's fields `name`, `name_low` and `name_high`."""
        low, high = self.ends
        return {name: self.value, f"{name}_low": low, f"{name}_high": high}

    def widened(self, error: float, samples: int) -> "Interval":
        """The interval, at least as wide as the estimator's own error makes it; a missing one stays missing.

        Args:
          error: standard error of `value` from the estimator's noise alone.
          samples: number of independent values it comes from, at least 2; Student's t has one degree less.
        """
        # Imported here: at the top, it would cost every program that measures 0.4 s.
        from scipy.special import stdtrit

        reach = float(stdtrit(samples - 1, 0.975)) * error
        return self._replace(
            low=min(self.low, self.value - reach), high=max(self.high, self.value + reach)
        )


def with_interval(result: Mapping[str, Any], name: str, digits: int) -> str:
    """A value of a record with its interval, as text.

    Args:
      result: holds `name`, `name_low` and `name_high`. Both ends are None if there is no interval; a single
        None is a number too large for float64.
      name: of the figure.
      digits: after the point.
    """
    ends = [result[f"{name}{end}"] for end in ("", "_low", "_high")]
    value, low, high = ("∞" if end is None else f"{end:.{digits}f}" for end in ends)
    return f"{value} ({'no interval' if ends[1:] == [None, None] else f'{low}–{high}'})"


def bootstrap(statistic: Callable[..., np.ndarray], *columns: np.ndarray, seed: int) -> Interval:
    """A statistic of texts and its 95 % interval; a single text has no interval.

    Args:
      statistic: a function of one or several `[..., texts]` that reduces the last axis.
      *columns: `[texts]` each; row i of all of them belongs to text i.
      seed: of the resampling.
    """
    columns = tuple(np.asarray(column, np.float64) for column in columns)
    size = len(columns[0])
    require(size > 0, "there are no texts to estimate anything from.")
    if size == 1:
        return Interval(float(statistic(*columns)), math.nan, math.nan)
    rng = np.random.default_rng(seed)
    values = []
    at_once = max(CHUNK // size, 1)
    for start in range(0, RESAMPLES, at_once):
        picks = rng.integers(0, size, size=(min(at_once, RESAMPLES - start), size))
        values.append(statistic(*(column[picks] for column in columns)))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return Interval(float(statistic(*columns)), float(low), float(high))


def share(hits: np.ndarray, *, seed: int) -> Interval:
    """The share of True in `hits: [texts] bool`, with its interval.

    If all hits are equal, resampling gives no interval. The interval then reaches to the share at which this
    many equal hits have a chance of 2.5 % (Clopper and Pearson).
    """
    interval = bootstrap(mean, hits, seed=seed)
    rare = 0.025 ** (1 / len(hits))
    if len(hits) > 1 and interval.value in (0.0, 1.0):
        return interval._replace(low=rare) if interval.value else interval._replace(high=1 - rare)
    return interval


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over texts."""
    return np.asarray(values.mean(axis=-1))


def shares(count: np.ndarray) -> np.ndarray:
    """How much each text weighs if all tokens weigh the same, 1 on average: `[texts]`; NaN without tokens.

    The share of texts of equal length is exactly 1, so what is multiplied by it keeps every bit.

    Args:
      count: `[texts]`, tokens of each text.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(count / count.mean(axis=-1, keepdims=True))


def ratio(weighted: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean over all tokens, from each text's mean times its share, and the share."""
    return np.asarray(weighted.mean(axis=-1) / share.mean(axis=-1))


def exp_mean(values: np.ndarray) -> np.ndarray:
    """Perplexity over the tokens of texts of equal length, from nats per token of each."""
    return np.asarray(np.exp(values.mean(axis=-1)))


def exp_ratio(nll: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Perplexity over all tokens, from the nats and the number of tokens of each text."""
    return np.asarray(np.exp(nll.sum(axis=-1) / count.sum(axis=-1)))
