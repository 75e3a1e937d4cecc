"""Orders of a score, with Gumbel noise and without. Oracle: every permutation, one by one."""

import itertools

import numpy as np
import pytest

from sdtt_jax.diffusion.decoders.confident import Confidence, EntropyBounded
from sdtt_jax.laboratory.orders import ordered_picks

SCORES = -np.random.default_rng(0).exponential(size=(3, 6))
SCORES[:, [0, 3]] = SCORES[:, [2]] + 1e-6  # a tie of three, up to rounding
PATTERN = (0, 2, 3, 5)


def brute(options, scores, count):
    """The chance of each set at one state: the first positions of a permutation, as many as allowed.

    A threshold takes all positions that reach it; where none does, the first one.
    """
    found, temperature = {}, options.order_temperature
    if isinstance(options, Confidence) and count is None:
        bound = np.log(options.threshold)
        sure = tuple(p for p, score in zip(PATTERN, scores, strict=True) if score >= bound)
        if sure:
            return {sure: 1.0}
        count = 1
    for order in itertools.permutations(range(len(scores))):
        chance, left = 1.0, list(order)
        for place in order:
            if temperature > 1e-3:
                weights = np.exp((scores - scores[left].max()) / temperature)
            else:
                weights = np.isclose(scores, scores[left].max(), rtol=0, atol=1e-5)
            chance *= weights[place] / weights[left].sum()
            left.remove(place)
        taken = count
        if isinstance(options, EntropyBounded):
            taken = 1
            while taken < len(order):
                entropies = -scores[list(order[: taken + 1])]
                if entropies.sum() - entropies.max() > options.bound:
                    break
                taken += 1
        chosen = tuple(sorted(PATTERN[place] for place in order[:taken]))
        found[chosen] = found.get(chosen, 0.0) + chance
    return found


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (Confidence(order_temperature=0.5), 2),
        (Confidence(order_temperature=2.0, threshold=0.5), None),
        (Confidence(order_temperature=2.0, threshold=0.8), None),  # which none reaches in state 2
        (EntropyBounded(1.0, order_temperature=0.3), None),
        (EntropyBounded(0.0, order_temperature=0.3), None),
        (Confidence(), 2),
        (Confidence("margin"), 2),
        (Confidence(order_temperature=1e-9), 2),  # too little to tell rounding errors from noise
        (Confidence(threshold=0.5), None),
        (EntropyBounded(1.0), None),
    ],
)
def test_each_set_has_the_chance_of_its_permutations(options, count):
    """Four masked positions with two calls left; a threshold reveals positions that sure, at least one."""
    source = np.array([0, 1, 2])
    found = {}
    for places, again, chance in ordered_picks(options, SCORES, 2, PATTERN, source):
        assert again == ()
        found[places] = chance
    for row, state in enumerate(source):
        scores = SCORES[state, list(PATTERN)]
        expected = brute(options, scores, count)
        assert sum(expected.values()) == pytest.approx(1)
        for places, chance in found.items():
            assert chance[row] == pytest.approx(expected.pop(places, 0.0), abs=1e-12)
        assert not any(expected.values())


def test_where_nothing_is_masked_nothing_is_revealed():
    assert list(ordered_picks(Confidence(order_temperature=1.0), SCORES, 2, (), np.arange(3))) == [
        ((), (), 1.0)
    ]
