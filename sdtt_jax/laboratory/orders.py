"""The exact chances of what is revealed by a decoder that takes positions in the order of a score.

Ordering scores by size, after adding Gumbel noise of temperature T, draws positions without replacement with
weights `exp(score / T)` (Plackett and Luce); at T = 0 the next position is any of the largest that are left.
So the chance that a set of positions comes first is a sum over which of them is last, from small sets to
large. A decoder reveals the longest start of the order that fits: a number of positions, or what a bound on
entropies allows. Whether a set fits depends on the set alone; if one does not, no larger set around it does.
Positions that reach a threshold are all revealed, and no others, whatever their order.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.decoders.confident import (
    Confidence,
    EntropyBounded,
    confident_count,
    of_margin,
    sure_enough,
)
from sdtt_jax.diffusion.decoders.ranking import noise_scale, without_rounding
from sdtt_jax.laboratory.world import Array

# Positions that are revealed, positions that are masked again, and the chance: [states] or a number.
Move = tuple[tuple[int, ...], tuple[int, ...], Any]


def ordered_picks(
    options: Confidence | EntropyBounded,
    score: Array,
    calls_left: int,
    pattern: tuple[int, ...],
    source: Array,
) -> Iterator[Move]:
    """Every set of positions that a call may reveal, and how probable it is in each state.

    Args:
      options: the decoder's options.
      score: `[states, L]`, the decoder's score of each position.
      calls_left: calls that may be made, this one included.
      pattern: the masked positions, the same in all states of `source`.
      source: `[n]`, numbers of states.
    """
    if not pattern:
        yield (), (), 1.0
        return
    scores = score[source][:, pattern]
    fits = _fitting(options, scores, calls_left)
    places, sure = range(len(pattern)), np.zeros(scores.shape, bool)
    if isinstance(options, Confidence):
        sure = np.asarray(sure_enough(options, jnp.asarray(scores)))
    if noise_scale(options.order_temperature) == 0:
        due = jnp.ones(scores.shape, bool)
        found = without_rounding(jnp.asarray(scores), due, margin=of_margin(options))
        scores = np.asarray(found)
    first: dict[tuple[int, ...], Array] = {(): np.ones(len(source))}
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(places, count) for count in range(1, len(pattern) + 1)
    ):
        # The chance that `chosen` comes first, in any order: one of its positions is the last.
        first[chosen] = np.zeros(len(source))
        for last in chosen:
            before = tuple(place for place in chosen if place != last)
            first[chosen] += first[before] * _next(options, scores, before, last)
    for chosen, chance in first.items():
        if not chosen:
            continue
        others = [place for place in places if place not in chosen]
        stops = sum(
            (
                _next(options, scores, chosen, place) * ~fits(tuple(sorted((*chosen, place))))
                for place in others
            ),
            start=np.zeros(len(source)),
        )
        here = chance * fits(chosen) * (stops if others else 1.0)
        exactly = (sure == np.isin(places, chosen)).all(axis=1)
        here = np.where(sure.any(axis=1), exactly, here)
        if here.any():
            yield tuple(pattern[place] for place in chosen), (), here


def _next(
    options: Confidence | EntropyBounded, scores: Array, before: tuple[int, ...], place: int
) -> Array:
    """The chance that `place` comes next after the positions `before`: `[n]`."""
    left = [other for other in range(scores.shape[1]) if other not in before]
    behind = np.minimum(scores - scores[:, left].max(axis=1, keepdims=True), 0.0)
    if (scale := noise_scale(options.order_temperature)) > 0:
        weights = np.exp(behind / scale)
    else:
        weights = (behind == 0).astype(np.float64)
    return weights[:, place] / weights[:, left].sum(axis=1)


def _fitting(
    options: Confidence | EntropyBounded, scores: Array, calls_left: int
) -> Callable[[tuple[int, ...]], Array]:
    """Returns a function from a set of places to `[n]` bool: whether a call may reveal all of them."""
    if isinstance(options, Confidence):
        due = jnp.ones(scores.shape, bool)
        found = confident_count(options, due, jnp.int32(calls_left))
        count = np.broadcast_to(np.asarray(found)[:, 0], len(scores))
        return functools.cache(lambda chosen: len(chosen) <= count)

    def fits(chosen: tuple[int, ...]) -> Array:
        entropies = -scores[:, list(chosen)]
        return entropies.sum(axis=1) - entropies.max(axis=1) <= options.bound

    return functools.cache(fits)
