"""Which noise-coupled students a world is measured with, and by what. Trained ones: test_others.py."""

import numpy as np
import pytest

from sdtt_jax.distillation.coupled import CoupledDistillConfig
from sdtt_jax.laboratory import distillers
from sdtt_jax.laboratory.coupled import (
    CoupledStudentConfig,
)
from sdtt_jax.laboratory.distillers import measure_distillers
from sdtt_jax.laboratory.others import StudentBench
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.world import (
    World,
    law_measures,
)

WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.1, 0.2), name="weather")
TRUTH = Truth.of(WORLD)
SIZES = CoupledStudentConfig(num_steps=150)


def test_measures_of_laws_are_sums_over_sequences():
    law = np.array([0.5, 0.25, 0.25])
    chain = np.array([0.25, 0.25, 0.5])
    found = law_measures(law, chain, 2)
    half = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert found == pytest.approx(
        {"kl": half, "kl_reverse": half, "tv": 0.25, "entropy": 1.5 * np.log(2) / 2}
    )


def test_in_rounds_calls_are_halved_down_to_one_with_as_many_steps_in_all(monkeypatch):
    """Three tokens: four calls, in two rounds of 75 steps each, become two calls and then one; by hand."""
    asked_of = {}

    def train(_world, config, distill):
        asked_of[distill.soft_weight] = config.num_steps, distill
        return ["first", "second"]

    def measured(_truth, _diffusion, params, calls, _draws, _temperature, mode):
        return {str(calls[0]): (params, mode)}

    monkeypatch.setattr(distillers, "train_coupled", train)
    monkeypatch.setattr(distillers, "sampled_measures", measured)
    bench = StudentBench(TRUTH, (1, 2, 3), SIZES)
    names = {"coupled-rounds", "coupled-soft"}
    found = measure_distillers(names, bench)
    assert set(found) == names | {f"{name}-drawn" for name in names}
    students = {n: student for n, (student, _) in found["coupled-rounds"].items()}
    assert students == {"1": "second", "2": "first", "3": "first"}
    assert {mode for _, mode in found["coupled-soft"].values()} == {"first-hitting"}
    for weight in (0.0, 1.0):
        distill = CoupledDistillConfig(4, num_distill_calls=2, num_rounds=2, soft_weight=weight)
        assert asked_of[weight] == (75, distill)


def test_a_single_token_has_one_round_too(monkeypatch):
    """Its logarithm to the base of two is no round at all."""

    def train(_world, config, distill):
        return [(config.num_steps, distill.num_rounds, distill.num_calls)]

    monkeypatch.setattr(distillers, "train_coupled", train)
    monkeypatch.setattr(distillers, "sampled_measures", lambda *given: {"1": given[2]})
    token = World((0.3, 0.7), ((0.5, 0.5), (0.5, 0.5)), 1, (0.5,), name="token")
    found = measure_distillers(["coupled-rounds"], StudentBench(Truth.of(token), (1,), SIZES))
    assert found["coupled-rounds"] == {"1": (150, 1, 2)}
