"""How many calls a prompt needs. Oracles: a world in which the loss is known, and plain sums."""

import dataclasses

import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.judge import Scores
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites.budget import (
    check,
    fewest,
    fit,
    halves,
    of_prompts,
    prompt_features,
)
from sdtt_jax.ops.sequences import Sequences
from tests.worlds import MASK, as_model, noisy_params, predictions, tiny_network
from tests.worlds import all_states as table_states

STEPS = np.array([4, 8, 16])


def world(prompts, noise, seed=0):
    """Prompts with one feature in [0, 1]; the larger it is, the more nats few steps lose."""
    rng = np.random.default_rng(seed)
    hard = rng.random(prompts)
    features = np.stack([hard, rng.random(prompts)], axis=1)
    excess = np.stack([0.4 * hard, 0.1 * hard, 0 * hard], axis=1)
    seen = 2.0 + excess + noise * rng.normal(size=excess.shape)
    return features, seen, hard


def test_it_takes_the_fewest_steps_that_lose_little():
    features, nats, hard = world(500, noise=0.0)
    budget = fit(features, nats - nats[:, -1:], ridge=1e-6)
    expected = np.where(0.4 * hard <= 0.05, 0, np.where(0.1 * hard <= 0.05, 1, 2))
    np.testing.assert_array_equal(fewest(budget, features, 0.05), expected)


def test_with_noise_each_prompt_still_gets_its_own_number():
    """n = 2,000 prompts, noise 0.3 nats; standard error of the mean excess 0.014, seed 0.

    At 0.06 nats, prompts up to 0.15 get 4 steps and those up to 0.6 get 8: 10.6 on average, losing 0.021.
    A fixed number of steps only has to lose at most 0.06 nats on average.
    """
    features, nats, _ = world(4_000, noise=0.3)
    found = halves(features, nats, STEPS, 0.06)
    assert found["steps"] == pytest.approx(10.6, abs=0.5)
    assert found["excess"] == pytest.approx(0.021, abs=3 * 0.014)
    assert (found["fixed_steps"], found["prompts"]) == (8, 2_000)
    assert found["fixed_excess"] == pytest.approx(0.05, abs=3 * 0.014)


def test_a_prompt_that_a_number_of_steps_left_empty_is_in_neither_half():
    """Oracle: the same prompts without those."""
    features, nats, _ = world(100, noise=0.3)
    empty = np.insert(nats, [0, 50], [[np.nan, 1.0, 1.0], [1.0, 1.0, np.nan]], axis=0)
    found = halves(np.insert(features, [0, 50], 9.0, axis=0), empty, STEPS, 0.06)
    assert found.pop("prompts_not_scored") == 2
    expected = halves(features, nats, STEPS, 0.06)
    assert expected.pop("prompts_not_scored") == 0
    assert found == expected


def test_the_features_are_entropies_of_what_is_masked():
    network = tiny_network()
    params = noisy_params(network, 0)
    x = np.array([[0, MASK, MASK], [MASK, 1, MASK]], np.int32)
    found = prompt_features(as_model(network, params), x, 2)
    table = predictions(network, params)
    number = {tuple(state): n for n, state in enumerate(table_states().tolist())}
    for row, state in zip(found, x, strict=True):
        probs = table[number[tuple(state.tolist())]][state == MASK]
        nats = -(probs * np.log(probs)).sum(axis=-1)
        np.testing.assert_allclose(row, [nats.mean(), nats.std(), nats.max()], atol=1e-4)


def test_padding_changes_no_feature():
    """Oracle: the text by itself, as long as its sequence; the network is told how much is masked."""
    network = tiny_network(time_conditioned=True)
    model = as_model(network, noisy_params(network, 0))
    sequences = Sequences("padded", bos_id=0, eos_id=2)
    padded = dataclasses.replace(
        model, facts=model.facts | {"sequences": "padded"}, tokenizer=sequences
    )
    alone = prompt_features(model, np.array([[MASK, 2]], np.int32), 1)
    np.testing.assert_allclose(
        prompt_features(padded, np.array([[MASK, 2, 2]], np.int32), 1), alone, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "continues prompts; give --num_prompts or --prompts"),
        (
            {"num_prompts": 4, "num_steps": (2,)},
            "--num_steps=2 is one number of steps; .* two or more",
        ),
    ],
)
def test_what_the_suite_lacks_is_named(settings, said):
    network = tiny_network()
    model = as_model(network, noisy_params(network, 0))
    with pytest.raises(ConfigError, match=said):
        check(Subject(model, Settings(**settings), judge=object()))


def test_too_few_prompts_are_refused_before_anything_is_written(tmp_path):
    """Oracle: half of 6 prompts are as many as the features."""
    (tmp_path / "prompts.jsonl").write_text('{"tokens": [0]}\n' * 6)
    network = tiny_network()
    model = as_model(network, noisy_params(network, 0))
    settings = Settings(prompts=str(tmp_path / "prompts.jsonl"), prompt_tokens=1)
    with pytest.raises(ConfigError, match="needs 7 prompts, not 6; give more with --num_prompts"):
        check(Subject(model, settings, judge=object()))


def test_fewer_prompts_than_features_are_refused():
    with pytest.raises(ConfigError, match="2 prompts are too few to fit 3 features"):
        fit(np.zeros((2, 3)), np.zeros((2, 3)))


def test_an_empty_continuation_does_not_count_as_one_without_loss():
    """Oracle: nats over tokens of each prompt by hand; with equal lengths, the mean over continuations."""
    nll, scored = np.array([8.0, 0.0, 3.0, 1.0, 0.0, 0.0]), np.array([4, 0, 1, 3, 0, 0])
    scores = Scores(nll, scored, np.ones(6, int))
    np.testing.assert_allclose(of_prompts(scores, 2), [2.0, 1.0, np.nan])
    nll = np.random.default_rng(0).random(12)
    even = Scores(nll, np.full(12, 7), np.ones(12, int))
    np.testing.assert_array_equal(of_prompts(even, 3), even.per_token.reshape(4, 3).mean(axis=1))
