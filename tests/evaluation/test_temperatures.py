"""A temperature for each call. Oracles: both divergences summed over all texts of an enumerated world, and
the exact law of the samples."""

import itertools
import math

import numpy as np
import pytest

from sdtt_jax.diffusion.decoders.learnt import numbers_text
from sdtt_jax.evaluation.temperatures import TEMPERATURES, best_temperatures, lowest, two_sided
from sdtt_jax.laboratory.decoders import decoder_law
from sdtt_jax.laboratory.matched import at_temperature
from sdtt_jax.laboratory.world import World, all_states, true_denoiser
from tests.worlds import LENGTH, MASK, TableDenoiser, as_model

# A token is likely to repeat, so two drawn at once often contradict each other.
ROWS = ((0.9, 0.05, 0.05), (0.04, 0.9, 0.06), (0.05, 0.05, 0.9))
PROBS, EVIDENCE = true_denoiser(World((0.4, 0.3, 0.3), ROWS, LENGTH))
STATES = all_states(3, LENGTH)
NUMBER = {tuple(state): n for n, state in enumerate(STATES.tolist())}
CHAIN = np.where((STATES == MASK).any(axis=1), 0.0, EVIDENCE)


@pytest.fixture(scope="module")
def model():
    return as_model(TableDenoiser(), {"table": np.log(np.maximum(PROBS, 1e-30))})


@pytest.fixture(scope="module")
def texts():
    """n = 4,096, seed 0."""
    chance = CHAIN / CHAIN.sum()
    return STATES[np.random.default_rng(0).choice(len(STATES), 4_096, p=chance)].astype(np.int32)


def exact(temperature):
    """KL(p || q) + KL(q || p) of a call that sees one token and draws the other two."""
    table, total = at_temperature(PROBS, temperature), 0.0
    for place, token in itertools.product(range(LENGTH), range(3)):
        state = [MASK] * LENGTH
        state[place] = token
        row, seen = NUMBER[tuple(state)], EVIDENCE[NUMBER[tuple(state)]]
        others = [i for i in range(LENGTH) if i != place]
        for drawn in itertools.product(range(3), repeat=2):
            text = list(state)
            for i, new in zip(others, drawn, strict=True):
                text[i] = new
            p = EVIDENCE[NUMBER[tuple(text)]] / seen
            q = math.prod(table[row, i, new] for i, new in zip(others, drawn, strict=True))
            total += seen / LENGTH * (p - q) * math.log(p / q)
    return total


def test_the_sum_is_that_of_the_world(model, texts):
    """Equal up to a constant; the standard error of a difference is at most 0.017, over 24 seeds."""
    found = two_sided(model, texts, [(1, LENGTH)], seed=0, batch_size=4_096)[0]
    expected = np.array([exact(temperature) for temperature in TEMPERATURES])
    np.testing.assert_allclose(found - found[-1], expected - expected[-1], atol=3 * 0.017)


def test_the_learnt_temperatures_bring_the_samples_nearer(model, texts):
    """By both divergences and total variation; a call of one token gets temperature 1."""
    scales = best_temperatures(model, texts, (1, 2), seed=0, batch_size=4_096)
    assert scales[0] == 1
    best = min(np.linspace(0.5, 1.15, 66), key=exact)
    assert scales[1] == pytest.approx(best, abs=0.05)
    chain = CHAIN[CHAIN > 0]

    def distances(options):
        law, _ = decoder_law(PROBS, f"learnt:counts=1/2/{options}", 2)
        ratio = np.log(law / chain)
        return np.array([(law * ratio).sum(), -(chain * ratio).sum(), abs(law - chain).sum() / 2])

    sharp, plain = distances(f",temperatures={numbers_text(scales)}"), distances("")
    assert (sharp < plain).all()
    assert sharp[:2].sum() < 0.9 * plain[:2].sum()


def test_the_lowest_point_is_found_between_the_temperatures():
    logs = np.log(TEMPERATURES)
    assert lowest((logs - np.log(0.85)) ** 2) == pytest.approx(0.85, abs=0.01)
    assert lowest(logs) == pytest.approx(TEMPERATURES[0])
    assert lowest(-logs) == pytest.approx(TEMPERATURES[-1])
