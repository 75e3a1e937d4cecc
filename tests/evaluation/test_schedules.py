"""Schedules learnt for a number of calls. Oracles: the world's exact curve, all schedules one by one, and the
divergence between law and samples, summed over every order.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.decoders.learnt import Learnt, numbers_text
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.schedules import best_counts, gap, information_curve
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import schedule as suite
from sdtt_jax.laboratory.decoders import decoder_law
from sdtt_jax.laboratory.world import World, all_states, true_denoiser
from sdtt_jax.model.learnt import store_fitted, with_stored_schedule
from tests.worlds import LENGTH, MASK, TableDenoiser, as_model, noisy_params, tiny_network

WORLD = World((0.6, 0.4), ((0.95, 0.05), (0.2, 0.8)), 6, name="weather")
PROBS, EVIDENCE = true_denoiser(WORLD)
STATES = all_states(2, 6)


def exact_curve(probs, evidence, size):
    """h(j): the mean entropy over every set of j shown positions, every text and every masked position."""
    length = probs.shape[1]
    entropies = -(probs * np.log(np.maximum(probs, 1e-300))).sum(axis=-1)
    masked = all_states(size, length) == size
    shown = length - masked.sum(axis=1)
    weight = evidence / np.array([math.comb(length, j) for j in shown])
    mean = (entropies * masked).sum(axis=1) / np.maximum(masked.sum(axis=1), 1)
    return np.array([(weight * mean)[shown == j].sum() for j in range(length)])


@pytest.fixture(scope="module")
def curve():
    return exact_curve(PROBS, EVIDENCE, 2)


def schedules(calls):
    return [c for c in itertools.product(range(1, 7), repeat=calls) if sum(c) == 6]


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 6])
def test_no_schedule_is_better(curve, calls):
    best = min(schedules(calls), key=lambda counts: gap(curve, counts))
    assert best_counts(curve, calls) == best
    assert best_counts(curve, 8) == (1,) * 6 + (0,) * 2


def test_the_gap_is_the_divergence_of_law_and_order(curve):
    """The mean of log p(text) - log(chance of the calls to draw it) over orders and texts bounds the KL."""
    counts = (1, 2, 3)
    number = {tuple(state): n for n, state in enumerate(STATES.tolist())}
    total, texts = 0.0, [s for s in STATES.tolist() if 2 not in s]
    for order, text in itertools.product(itertools.permutations(range(6)), texts):
        state, drawn = [2] * 6, 0.0
        for start, count in zip((0, 1, 3), counts, strict=True):
            row = PROBS[number[tuple(state)]]
            for place in order[start : start + count]:
                drawn += math.log(row[place, text[place]])
                state[place] = text[place]
        p = EVIDENCE[number[tuple(text)]]
        total += p * (math.log(p) - drawn) / math.factorial(6)
    assert gap(curve, counts) == pytest.approx(total, abs=1e-9)
    law, _ = decoder_law(PROBS, f"learnt:counts={numbers_text(counts)}", 3)
    chain = EVIDENCE[[number[tuple(t)] for t in texts]]
    assert 0 < (chain * np.log(chain / law)).sum() < total


def test_a_learnt_schedule_is_ahead_of_even_counts_in_the_world(curve):
    chain = EVIDENCE[[n for n, s in enumerate(STATES.tolist()) if 2 not in s]]

    def divergence(mode):
        law, _ = decoder_law(PROBS, mode, 3)
        return (chain * np.log(chain / law)).sum()

    learnt = divergence(f"learnt:counts={numbers_text(best_counts(curve, 3))}")
    assert learnt < 0.95 * divergence("first-hitting")


def test_the_curve_is_estimated_from_texts():
    """n = 20,000 texts of a chain, one masking each; standard errors below 0.01, seed 0."""
    rows = ((0.9, 0.05, 0.05), (0.1, 0.8, 0.1), (0.2, 0.2, 0.6))
    probs, evidence = true_denoiser(World((0.5, 0.3, 0.2), rows, LENGTH))
    model = as_model(TableDenoiser(), {"table": np.log(np.maximum(probs, 1e-30))})
    states = all_states(3, LENGTH)
    chance = np.where((states == MASK).any(axis=1), 0.0, evidence)
    texts = states[np.random.default_rng(0).choice(len(states), 20_000, p=chance / chance.sum())]
    found = information_curve(model, texts.astype(np.int32), 0, num_maskings=1, batch_size=20_000)
    np.testing.assert_allclose(found, exact_curve(probs, evidence, 3), atol=0.04)


@pytest.fixture(scope="module")
def model():
    return as_model(tiny_network(), noisy_params(tiny_network(), 0))


def written(model, mode, num_steps=2):
    config = SamplerConfig(num_steps, mode=mode)
    return model.denoise(jax.random.key(0), prior_sample(8, LENGTH, MASK), config)


def test_what_is_stored_beside_a_checkpoint_is_taken_by_the_number_of_calls(model, tmp_path):
    model = dataclasses.replace(model, facts=model.facts | {"path": str(tmp_path)})
    (tmp_path / "schedules.json").write_text('{"2": "1/2/"}')
    found, said = written(model, "learnt"), written(model, "learnt:counts=1/2/")
    np.testing.assert_array_equal(found.x, said.x)
    (tmp_path / "schedules.json").write_text('{"2": {"counts": "1/2/", "temperatures": "1/0.2/"}}')
    sharp, said = (
        written(model, mode) for mode in ("learnt", "learnt:counts=1/2/,temperatures=1/0.2/")
    )
    np.testing.assert_array_equal(sharp.x, said.x)
    assert (sharp.x != found.x).any()
    plain = written(model, "learnt:temperatures=1/")
    np.testing.assert_array_equal(plain.x, found.x)
    with pytest.raises(ConfigError, match=r"a schedule of 3 calls is not stored .*there are 2\)"):
        written(model, "learnt", 3)


@pytest.mark.parametrize(
    ("length", "facts", "said"),
    [
        (
            LENGTH - 1,
            {},
            f"the counts are for texts of {LENGTH - 1} tokens, the model's have {LENGTH}",
        ),
        (LENGTH, {"variant": {}}, "leave out --early_exit and --neighbours"),
        (LENGTH, {}, "  written to"),
        (LENGTH, {}, "cannot be written to; copy the checkpoint"),
    ],
)
def test_the_log_says_whether_a_schedule_was_stored(
    model, tmp_path, monkeypatch, length, facts, said
):
    """It said nothing of one for other lengths; a folder of somebody else ended the command, after all that.
    Oracle: the file."""
    if "cannot be written" in said:
        monkeypatch.setattr("sdtt_jax.model.learnt.os.access", lambda *_: False)
    model = dataclasses.replace(model, facts=model.facts | {"path": str(tmp_path)} | facts)
    monkeypatch.setattr(suite, "check", lambda _: None)
    monkeypatch.setattr(suite, "held_out", lambda _: np.zeros((4, length), np.int32))
    monkeypatch.setattr(suite, "held_out_name", lambda _: "text")
    log = []
    settings = Settings(num_steps=(2,), num_maskings=1, call_temperatures=False)
    record = Record(tmp_path / "found.out", model.identity, log.append)
    suite.suite(Subject(model, settings), record)
    assert said in log[-1]
    assert (tmp_path / "schedules.json").exists() is ("  written to" in log[-1])


def test_counts_are_stored_to_the_last_digit():
    """Counts of 10,000 and more became 1.638e+04, which cannot be read. Temperatures have four digits."""
    counts = tuple(np.array([16384, 12345]))
    assert Learnt(numbers_text(counts), numbers_text((0.912345, 1.0))).tokens == counts
    assert numbers_text((0.912345, 1.0)) == "0.9123/1"


def test_a_schedule_is_for_the_parameters_it_was_fitted_to(model, tmp_path):
    """Also if a variant of the model has more parameters; entries of earlier versions have no digest."""
    model = dataclasses.replace(model, facts=model.facts | {"path": str(tmp_path)})
    store_fitted(model, "schedules.json", {"2": {"counts": "1/2/"}})
    config = SamplerConfig(2, mode="learnt")
    told = model.facts | {"checkpoint_digest": model.params_digest}
    varied = dataclasses.replace(model, params={"network": model.params}, facts=told)
    assert with_stored_schedule(config, varied) == with_stored_schedule(config, model)
    other = dataclasses.replace(model, params={"network": model.params})
    with pytest.raises(ConfigError, match=r"schedules.json, was fitted to other parameters"):
        with_stored_schedule(config, other)
    (tmp_path / "schedules.json").write_text('{"2": {"counts": "1/2/"}}')
    assert with_stored_schedule(config, other) == with_stored_schedule(config, model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("counts=1/x", "whole numbers with '/' between them"),
        ("counts=1/1/", "2 calls and 2 tokens, but this generation has 2 calls and 3"),
        ("counts=1/2/,temperatures=1/0/", "positive numbers with '/' between them"),
        ("counts=1/2/,temperatures=1/x/", "positive numbers with '/' between them"),
        ("counts=1/2/,temperatures=1/1/1/", "gives 3 values for 2 calls"),
    ],
)
def test_options_that_cannot_work_are_refused(model, options, said):
    with pytest.raises(ConfigError, match=said):
        written(model, f"learnt:{options}")


@pytest.mark.parametrize("number", [0, 2.5])
def test_maskings_are_counted(model, number):
    with pytest.raises(ConfigError, match="num_maskings must be"):
        information_curve(
            model, np.zeros((2, LENGTH), np.int32), 0, num_maskings=number, batch_size=2
        )
