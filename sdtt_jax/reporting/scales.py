"""Scales, round ticks, and labels that keep apart: the arithmetic of a figure's layout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] of the data to [start, end] pixels, by logarithm if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Position in pixels of a data value."""
        low, high, value = map(math.log if self.log else float, (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def padded(values: Sequence[float], *, log: bool, share: float = 0.06) -> tuple[float, float]:
    """Range of the values with a margin of `share` on both sides (of the logarithm if `log`)."""
    low, high = min(values), max(values)
    if log:
        margin = max(math.log(high / low), 0.02) * share
        return low * math.exp(-margin), high * math.exp(margin)
    margin = max(high - low, 1e-9 + 0.01 * abs(high)) * share
    return low - margin, high + margin


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high], at 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(count, 1)
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high] for a logarithmic axis.

    Over less than half a decade no set of round mantissas gives enough ticks, and evenly
    spaced numbers read better.
    """
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 6, 8)):
        ticks = [m * 10.0**d for d in decades for m in mantissas]
        ticks = [t for t in ticks if low <= t <= high]
        if min(4, count) <= len(ticks) <= count + 2:
            return ticks
        if len(ticks) > count + 2:
            return ticks[:: math.ceil(len(ticks) / count)]
    return [t for t in linear_ticks(low, high, count + 1) if t > 0]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves labels as little as needed so that they stay in order, `gap` apart, in [low, high].

    A label's place, minus one gap for each label before it, may not fall from one label to the next.
    Least squares under that rule is isotonic regression.
    """
    from scipy.optimize import isotonic_regression  # imported when needed, as SciPy is everywhere

    if not len(positions):
        return []
    order = np.argsort(positions, kind="stable")
    before = gap * np.arange(len(order))
    fitted = isotonic_regression(np.asarray(positions)[order] - before).x
    places = np.empty(len(order))
    places[order] = np.maximum(low, np.minimum(high - before[-1], fitted)) + before
    return [float(place) for place in places]
