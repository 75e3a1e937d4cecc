"""ReMDM by confidence. Oracle: a sum over all histories, with the confidence each token was written with."""

import itertools
import math

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.decoders.doubting import doubt
from sdtt_jax.diffusion.decoders.remasking import Remdm, remask_chances
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from tests.statistics import assert_fits
from tests.worlds import LENGTH, MASK, TableDenoiser, all_states, predictions, random_table

NETWORK, PARAMS, STEPS, ETA = TableDenoiser(), random_table(1), 3, 0.8
NUMBER = {tuple(state): n for n, state in enumerate(all_states().tolist())}


def chances(state, confidence, sigma):
    """The chance that each shown position is remasked: proportional to exp(-confidence), with mean sigma,
    mixed with even chances until the largest is at most 1."""
    shown = [i for i in range(LENGTH) if state[i] != MASK]
    weights = {i: math.exp(-confidence[i]) for i in shown}
    mean = sum(weights.values()) / max(len(shown), 1)
    uneven = {i: sigma * weights[i] / mean for i in shown}
    share = 1.0
    if uneven and max(uneven.values()) > 1:
        share = (1 - sigma) / (max(uneven.values()) - sigma)
    return {i: sigma + share * (uneven[i] - sigma) for i in shown}


def brute(num_steps):
    """The law of states and of the confidences of their tokens, after each step."""
    table = predictions(NETWORK, PARAMS)
    law, laws = {((MASK,) * LENGTH, (0.0,) * LENGTH): 1.0}, []
    for index in range(num_steps):
        alpha_t, alpha_s = index / num_steps, (index + 1) / num_steps
        sigma = min(ETA, (1 - alpha_s) / alpha_t) if alpha_t else ETA
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        after = {}
        for (state, confidence), weight in law.items():
            again, rows = chances(state, confidence, sigma), table[NUMBER[state]]
            for text in itertools.product(range(MASK + 1), repeat=LENGTH):
                value, kept = weight, list(confidence)
                for i, (old, new) in enumerate(zip(state, text, strict=True)):
                    if old != MASK:
                        value *= again[i] if new == MASK else (1 - again[i]) * (new == old)
                    else:
                        value *= 1 - reveal if new == MASK else reveal * rows[i, new]
                    if new == MASK or old == MASK:
                        kept[i] = 0.0 if new == MASK else rows[i, new]
                if value > 0:
                    key = text, tuple(kept)
                    after[key] = after.get(key, 0.0) + value
        law = after
        laws.append(law)
    return laws


@pytest.fixture(scope="module")
def laws():
    return brute(STEPS)


@pytest.fixture(scope="module")
def states():
    """n = 100,000 texts, seed 3, after every step."""
    x_init = prior_sample(100_000, LENGTH, MASK)
    config = SamplerConfig(STEPS, mode=f"remdm-confidence:eta={ETA}")
    diffusion = MaskedDiffusion(NETWORK, make_schedule())
    draw = jax.jit(
        lambda: sample(diffusion, PARAMS, jax.random.key(3), x_init, config, keep_states=True)
    )
    return np.asarray(draw()[1])


def test_it_draws_what_the_sum_over_all_histories_says(laws, states):
    """Standard error of a frequency at most 1.6e-3."""
    for law, drawn in zip(laws, states[1:], strict=False):
        exact = np.zeros((MASK + 1,) * LENGTH)
        for (text, _), weight in law.items():
            exact[text] += weight
        numbers = drawn @ (MASK + 1) ** np.arange(LENGTH - 1, -1, -1)
        observed = np.bincount(numbers, minlength=exact.size)
        possible = exact.ravel() > 0
        # The schedule ends at alpha = 0.001 and not at 0: a few texts are still masked after the last step.
        assert observed[~possible].sum() < 0.01 * len(drawn)
        rest = observed[possible]
        assert_fits(rest, exact.ravel()[possible])


def test_the_share_that_is_masked_is_the_schedules(laws, states):
    """ReMDM's theorem for the mean over positions: exact in the sum; 5 standard errors of samples."""
    for step, law in enumerate(laws, 1):
        share = sum(w * text.count(MASK) / LENGTH for (text, _), w in law.items())
        assert share == pytest.approx(1 - step / STEPS, abs=1e-9)
        assert (states[step] == MASK).mean() == pytest.approx(share, abs=8e-3)


def test_what_was_least_sure_is_doubted_most_and_no_chance_exceeds_one():
    confidence, shown = np.array([[0.9, 0.1, 0.5, 0.0]], np.float32), np.array([[1, 1, 1, 0]], bool)
    for sigma in (0.2, 0.8, 1.0):
        found = np.asarray(doubt(confidence, shown, np.float32(sigma)))[0]
        expected = chances((0, 0, 0, MASK), confidence[0].tolist(), sigma)
        np.testing.assert_allclose(sigma * found[:3], [expected[i] for i in range(3)], atol=1e-6)
        assert found[3] == 0
        assert found[:3].mean() == pytest.approx(1)
        assert (sigma * found <= 1 + 1e-6).all()


def test_the_last_step_masks_nothing_again():
    """At the smallest time, 1e-5, a shown token would be masked again with that chance: n = 900,000."""
    run = jax.jit(sample, static_argnames=("diffusion", "config"))
    diffusion = MaskedDiffusion(TableDenoiser(), make_schedule())
    x_init, config = prior_sample(300_000, LENGTH, MASK), SamplerConfig(1, mode="remdm:eta=1.0")
    x = run(diffusion, random_table(2), jax.random.key(3), x_init, config)[0].x
    assert not (x == MASK).any()


def test_forward_and_backward_masks_on_the_way_to_t_what_is_not_revealed_on_the_way_back():
    """Oracle: two steps of a token by hand, where 0.3 of them are clean at t and 0.5 at s."""
    _, sigma = remask_chances(Remdm(1.0, "forward-backward"), np.float32(0.7), np.float32(0.5))
    masked, revealed = 1 - 0.3 / 0.5, (0.5 - 0.3) / 0.7
    assert float(sigma) == pytest.approx(masked * (1 - revealed))
