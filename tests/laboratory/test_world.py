"""The enumerated world. Oracle: the same quantities by plain loops over sequences and paths."""

import itertools
import json
import math

import numpy as np
import pytest

from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.world import (
    World,
    all_states,
    finished_states,
    law_measures,
    load_world,
    reveal_sums,
    sample_distribution,
    state_probabilities,
    strides,
    true_denoiser,
    world_from_mapping,
)


def small_world() -> World:
    """Three unequal tokens, length 3: nothing in it is symmetric."""
    return World(
        (0.5, 0.3, 0.2), ((0.6, 0.3, 0.1), (0.15, 0.25, 0.6), (0.4, 0.05, 0.55)), 3, (0.25,)
    )


def chain_probability(world: World, sequence: tuple[int, ...]) -> float:
    value = world.initial[sequence[0]]
    for first, second in itertools.pairwise(sequence):
        value *= world.transition[first][second]
    return value


def test_states_are_numbered_by_their_digits() -> None:
    states = all_states(3, 3)
    assert states.shape == (64, 3)
    np.testing.assert_array_equal(states @ strides(3, 3), np.arange(64))
    np.testing.assert_array_equal(states[-1], [3, 3, 3])


def test_the_teacher_is_bayes_rule_over_all_sequences() -> None:
    world = small_world()
    teacher, evidence = true_denoiser(world)
    for number, state in enumerate(all_states(3, 3)):
        agreeing = [
            sequence
            for sequence in itertools.product(range(3), repeat=3)
            if all(s in (3, x) for s, x in zip(state, sequence, strict=True))
        ]
        total = sum(chain_probability(world, sequence) for sequence in agreeing)
        assert evidence[number] == pytest.approx(total, rel=1e-12)
        for position, token in itertools.product(range(3), repeat=2):
            part = sum(chain_probability(world, s) for s in agreeing if s[position] == token)
            assert teacher[number, position, token] == pytest.approx(part / total, abs=1e-12)


def test_state_probabilities_are_those_of_masking_at_a_uniform_time() -> None:
    """Oracle: a sum over 20,000 midpoints of t and all sequences."""
    world = small_world()
    _, evidence = true_denoiser(world)
    t = (np.arange(20_000) + 0.5) / 20_000
    probabilities = state_probabilities(world, evidence)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    for number in (0, 17, 31, 63):
        masked = (all_states(3, 3)[number] == 3).sum()
        expected = (t**masked * (1 - t) ** (3 - masked)).mean() * evidence[number]
        assert probabilities[number] == pytest.approx(expected, rel=1e-6)


def sample_by_paths(world: World, predictions: np.ndarray, num_steps: int) -> np.ndarray:
    """The sampler's distribution, step by step and state by state."""
    states = all_states(world.vocab_size, world.length)
    stride = strides(world.vocab_size, world.length)
    mask = world.vocab_size
    current = np.zeros(len(states))
    current[-1] = 1.0
    for step in range(num_steps):
        reveal = 1 / (num_steps - step)
        following = np.zeros(len(states))
        for number in np.flatnonzero(current):
            options = []
            for position, token in enumerate(states[number]):
                if token != mask:
                    options.append([(token, 1.0)])
                else:
                    drawn = reveal * predictions[number, position]
                    options.append([*enumerate(drawn), (mask, 1 - reveal)])
            for choice in itertools.product(*options):
                target = sum(int(s) * int(v) for s, (v, _) in zip(stride, choice, strict=True))
                following[target] += current[number] * math.prod(p for _, p in choice)
        current = following
    return current[finished_states(world)]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_the_sampler_is_the_sum_over_all_paths(num_steps: int) -> None:
    world = small_world()
    teacher, _ = true_denoiser(world)
    np.testing.assert_allclose(
        sample_distribution(reveal_sums(teacher), num_steps),
        sample_by_paths(world, teacher, num_steps),
        atol=1e-14,
    )


def test_many_steps_sample_the_chain_itself() -> None:
    """With one token revealed at a time the true denoiser is exact, so KL falls like 1 / n."""
    world = small_world()
    teacher, evidence = true_denoiser(world)
    measures = Truth.of(world).measures(teacher, [1, 1_000, 100_000])
    assert measures["1"]["kl"] > 0.1
    assert measures["100000"]["kl"] < measures["1000"]["kl"] < 1e-3
    chain = evidence[finished_states(world)]
    entropy = law_measures(chain, chain, world.length)["entropy"]
    assert measures["100000"]["entropy"] == pytest.approx(entropy, abs=1e-4)
    assert math.log(measures["100000"]["perplexity"]) == pytest.approx(entropy, abs=1e-4)


def test_measures_of_one_step_are_those_of_independent_tokens() -> None:
    world = small_world()
    teacher, _ = true_denoiser(world)
    sequences = list(itertools.product(range(3), repeat=3))
    chain = [chain_probability(world, sequence) for sequence in sequences]
    sampled = [math.prod(teacher[-1, i, v] for i, v in enumerate(s)) for s in sequences]
    pairs = list(zip(sampled, chain, strict=True))
    measures = Truth.of(world).measures(teacher, [1])["1"]
    cross = -sum(q * math.log(p) for q, p in pairs)
    assert measures["perplexity"] == pytest.approx(math.exp(cross / 3))
    assert measures["entropy"] == pytest.approx(-sum(q * math.log(q) for q in sampled) / 3)
    assert measures["kl"] == pytest.approx(sum(q * math.log(q / p) for q, p in pairs))
    assert measures["kl_reverse"] == pytest.approx(sum(p * math.log(p / q) for q, p in pairs))
    assert measures["tv"] == pytest.approx(sum(max(p - q, 0) for q, p in pairs))


GOOD = {"initial": [0.5, 0.5], "transition": [[0.9, 0.1], [0.2, 0.8]], "length": 3}


def test_a_world_file_is_read_with_its_name(tmp_path) -> None:
    path = tmp_path / "weather.json"
    path.write_text(json.dumps({**GOOD, "dts": [0.25, 0.5]}))
    world = load_world(path)
    assert (world.name, world.vocab_size, world.num_states) == ("weather", 2, 27)
    assert world.dts == (0.25, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": [[0.9, 0.2], [0.2, 0.8]]}, r"row 0, sums to 1\.1"),
        ({"initial": [0.5, 0.4]}, r"world\.initial sums to 0\.9"),
        ({"initial": [1.0, 0.0]}, "not positive"),
        ({"initial": [0.5, float("nan")]}, "not positive"),
        ({"transition": [[0.9, 0.1]]}, "2 rows of 2 numbers"),
        ({"initial": "often", "length": 3}, r"initial must be a list, not 'often'"),
        ({"length": 2.5}, "length must be of type int, not 2.5"),
        ({"length": 0}, r"world\.length must be positive, not 0"),
        ({"length": 40}, r"12,157,665,459,056,928,801 partly masked states"),
        ({"dts": [0.5, 2.0]}, r"world\.dts"),
        ({"dtz": [0.5]}, "no field 'dtz'; did you mean 'dts'"),
        ({"alpha": "cosine"}, "alpha is 'cosine'"),
        ({"num_distill_steps": 4}, "num_distill_steps is 4"),
    ],
)
def test_a_wrong_world_is_refused_with_its_field(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world_from_mapping({**GOOD, **change}, "w.json")


def test_a_missing_field_and_a_missing_file_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"w\.json: the field 'transition' is missing"):
        world_from_mapping({"initial": [0.5, 0.5], "length": 3}, "w.json")
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        load_world(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json is not JSON"):
        load_world(tmp_path / "bad.json")
