"""The exact law of decoders. Oracles: the sampler itself, and a brute-force sum over sequences one by one."""

import itertools
import math

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.laboratory.decoders import decoder_law, decoder_measures
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.world import (
    World,
    finished_states,
    reveal_sums,
    sample_distribution,
    true_denoiser,
)
from tests.statistics import assert_fits
from tests.worlds import LENGTH, MASK, VOCAB, TableDenoiser, all_states, predictions, random_table

WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.1, 0.2), name="weather")
TABLE, PARAMS = TableDenoiser(), random_table(1)
MODES = (
    "first-hitting",
    "confidence",
    "confidence:score=margin,order_temperature=0.5",
    "confidence:score=entropy,threshold=0.4",
    "confidence:threshold=0.5,order_temperature=1",
    "entropy-bounded:bound=0.8,order_temperature=0.3",
    "remdm:eta=0.3",
    "remdm:eta=0.7,rule=rescale",
    "learnt:counts=1/2/,temperatures=2/0.5/",
)
_sample = jax.jit(sample, static_argnames=("diffusion", "config"))


def table() -> np.ndarray:
    """The predictions of the table, one-hot at unmasked positions."""
    shown = all_states()[:, :, None] == np.arange(VOCAB)
    masked = (all_states() == MASK)[:, :, None]
    return np.where(masked, predictions(TABLE, PARAMS), shown)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_what_the_sampler_draws(mode: str) -> None:
    """2 steps of 3 tokens; n = 100,000, standard error of a frequency at most 1.6e-3, seed 3.

    The sampler's schedule ends at alpha = 0.001 and not at 0; the effect on ReMDM is far below that error.
    """
    diffusion = MaskedDiffusion(TABLE, make_schedule())
    x_init = prior_sample(100_000, LENGTH, MASK)
    config = SamplerConfig(2, mode=mode)
    state, _ = _sample(diffusion, PARAMS, jax.random.key(3), x_init, config)
    texts = np.asarray(state.x) @ VOCAB ** np.arange(LENGTH - 1, -1, -1)
    law, _ = decoder_law(table(), mode, 2)
    assert_fits(np.bincount(texts, minlength=VOCAB**LENGTH), law)


@pytest.mark.parametrize(
    "mode",
    [
        "confidence:score=margin",
        "confidence:order_temperature=1e-9",
        "blocks:length=3,cache=none,score=entropy",
    ],
)
def test_where_positions_are_alike_it_is_that_of_a_random_order(mode: str) -> None:
    """They differ by what is rounded, as do the two best tokens where all is masked.

    Two steps; n = 100,000, standard error of a frequency at most 1.6e-3, seed 4.
    """
    logits = np.repeat(np.asarray(PARAMS["table"])[:, :1], LENGTH, axis=1)
    logits[-1, :, 1] = logits[-1, :, 0] = logits[-1].max() + 1
    logits += 2e-7 * np.random.default_rng(1).normal(size=logits.shape)
    params = {"table": jax.nn.log_softmax(logits)}
    alike = np.where(table().max(axis=-1, keepdims=True) < 1, predictions(TABLE, params), table())
    expected, _ = decoder_law(alike, "first-hitting", 2)
    law, _ = decoder_law(alike, mode, 2)
    np.testing.assert_allclose(law, expected, atol=1e-6)
    config, x_init = SamplerConfig(2, mode=mode), prior_sample(100_000, LENGTH, MASK)
    state, _ = _sample(
        MaskedDiffusion(TABLE, make_schedule()), params, jax.random.key(4), x_init, config
    )
    texts = np.asarray(state.x) @ VOCAB ** np.arange(LENGTH - 1, -1, -1)
    assert_fits(np.bincount(texts, minlength=VOCAB**LENGTH), law)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_that_of_the_grid_is_the_sum_over_reveals(num_steps: int) -> None:
    """Which is what the sampler draws: test_student.py, tests/diffusion/test_sampler.py."""
    predictions, _ = true_denoiser(WORLD)
    law, calls = decoder_law(predictions, "grid", num_steps)
    exact = sample_distribution(reveal_sums(predictions), num_steps)
    np.testing.assert_allclose(law, exact, atol=1e-12)
    # Three positions, each revealed at one of n steps: the mean number of different steps.
    assert calls == pytest.approx(num_steps * (1 - (1 - 1 / num_steps) ** 3))


def brute_confidence(table: np.ndarray, num_steps: int) -> dict[tuple[int, ...], float]:
    """Texts one by one: at each call the surest ceil(masked / calls left) positions, by a plain loop."""
    number = {tuple(state): n for n, state in enumerate(all_states().tolist())}
    law = {(MASK,) * LENGTH: 1.0}
    for index in range(num_steps):
        after: dict[tuple[int, ...], float] = {}
        for state, weight in law.items():
            masked = [i for i, token in enumerate(state) if token == MASK]
            rows = table[number[state]]
            surest = sorted(masked, key=lambda i: -rows[i].max())
            taken = surest[: math.ceil(len(masked) / (num_steps - index))]
            for tokens in itertools.product(range(VOCAB), repeat=len(taken)):
                text, value = list(state), weight
                for position, token in zip(taken, tokens, strict=True):
                    text[position], value = token, value * rows[position, token]
                after[tuple(text)] = after.get(tuple(text), 0.0) + value
        law = after
    return law


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_that_of_confidence_is_the_plain_loops(num_steps: int) -> None:
    law, calls = decoder_law(table(), "confidence", num_steps)
    exact = brute_confidence(table(), num_steps)
    texts = itertools.product(range(VOCAB), repeat=LENGTH)
    np.testing.assert_allclose(law, [exact[text] for text in texts], atol=1e-12)
    assert calls == num_steps


def brute_remdm(table: np.ndarray, num_steps: int, eta: float) -> dict[tuple[int, ...], float]:
    """Every position of every sequence moves on its own: masked to a token, or a token to MASK."""
    number = {tuple(state): n for n, state in enumerate(all_states().tolist())}
    law = {(MASK,) * LENGTH: 1.0}
    for index in range(num_steps):
        alpha_t, alpha_s = index / num_steps, (index + 1) / num_steps
        sigma = min(eta, (1 - alpha_s) / alpha_t) if alpha_t else eta
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        after: dict[tuple[int, ...], float] = {}
        for (state, weight), text in itertools.product(
            law.items(), itertools.product(range(MASK + 1), repeat=LENGTH)
        ):
            value = weight
            for i, (old, new) in enumerate(zip(state, text, strict=True)):
                if old == MASK:
                    value *= 1 - reveal if new == MASK else reveal * table[number[state], i, new]
                else:
                    value *= sigma if new == MASK else (1 - sigma) * (new == old)
            after[text] = after.get(text, 0.0) + value
        law = after
    return law


def test_that_of_remdm_is_a_loop_over_positions() -> None:
    law, _ = decoder_law(table(), "remdm:eta=0.3", 3)
    exact = brute_remdm(table(), 3, 0.3)
    texts = itertools.product(range(VOCAB), repeat=LENGTH)
    np.testing.assert_allclose(law, [exact[text] for text in texts], atol=1e-6)


def test_one_token_a_call_is_the_chain_whatever_the_order() -> None:
    predictions, evidence = true_denoiser(WORLD)
    for mode in ("first-hitting", "confidence", "entropy-bounded:bound=0"):
        law, calls = decoder_law(predictions, mode, 3)
        np.testing.assert_allclose(law, evidence[finished_states(WORLD)], atol=1e-12)
        assert calls == 3


def test_a_text_that_is_never_written_has_an_infinite_divergence_and_is_none() -> None:
    """One call draws one token and the final call the most probable ones: other texts are never written."""
    found = decoder_measures(Truth.of(WORLD), ["confidence:threshold=1"], [1])
    at_one = found["confidence:threshold=1"]["1"]
    assert at_one["kl_reverse"] is None
    assert at_one["calls"] == 2  # one token, then the most probable ones


def test_steps_that_a_decoder_cannot_make_are_left_out() -> None:
    """Two blocks take an even number of steps."""
    world = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 2)
    found = decoder_measures(Truth.of(world), iter(["blocks:length=1,cache=none"]), [1, 2, 3])
    assert [*found["blocks:length=1,cache=none"]] == ["2"]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("confidance", "mode='confidance' is unknown"),
        ("grid:stop=filled", "leave `stop` out"),
        ("blocks:length=3", "add cache=none"),
        ("energy", "at most two candidates; add candidates=2"),
    ],
)
def test_a_decoder_without_a_law_is_refused(mode: str, said: str) -> None:
    """It was left out, as if it could not make the steps."""
    with pytest.raises(ConfigError, match=said):
        decoder_measures(Truth.of(WORLD), ["grid", mode], [2])


def test_an_order_of_high_temperature_has_the_law_of_a_random_one() -> None:
    """One of low temperature has the law without a temperature; three calls of one token each."""
    for limit, mode in (("1e9", "first-hitting"), ("1e-6", "confidence")):
        law, _ = decoder_law(table(), f"confidence:order_temperature={limit}", 3)
        np.testing.assert_allclose(law, decoder_law(table(), mode, 3)[0], atol=1e-7)


def test_a_law_that_depends_on_every_history_is_counted() -> None:
    """ReMDM by confidence that remasks nothing has the grid's law. 131,072 samples, errors below 0.005."""
    truth, mode = Truth.of(WORLD), "remdm-confidence:eta=0"
    counted = decoder_measures(truth, [mode], [2])[mode]["2"]
    exact = decoder_measures(truth, ["grid"], [2])["grid"]["2"]
    assert counted.pop("samples") == 131_072
    assert counted == pytest.approx(exact, abs=0.02)
    with pytest.raises(ConfigError, match="depends on every history"):
        decoder_law(truth.teacher, mode, 2)
