"""Exact rounds of distillation against stored ones, for every world in the folder.

Oracle: tests/golden/README.md, "exact_world": the same numbers from another program, whose
integral over time is a sum over 4,000 midpoints. Tolerance 1e-4, perplexities 1e-3.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdtt_jax.laboratory.optimum import round_optimum
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.world import (
    finished_states,
    law_measures,
    strides,
    true_denoiser,
    world_from_mapping,
)

TOLERANCE = {"perplexity": 1e-3, "entropy": 1e-4, "kl": 1e-4}


def stored_worlds(folder: Path) -> list[Any]:
    files = [file for file in sorted(folder.glob("*.json")) if file.name != "config.json"]
    return [json.loads(file.read_text()) for file in files]


def assert_measures(
    stored: Mapping[str, Mapping[str, float]], computed: Mapping[str, Mapping[str, float]]
) -> None:
    for steps, values in stored.items():
        for quantity, value in values.items():
            got = computed[steps][quantity]
            assert got == pytest.approx(value, abs=TOLERANCE[quantity], rel=0), (steps, quantity)


def probe_numbers(stored: Mapping[str, Any]) -> np.ndarray:
    size, length = len(stored["initial"]), stored["length"]
    return np.array(stored["probe_states"]) @ strides(size, length)


def test_teacher_and_its_samples(exact_world_golden: Path) -> None:
    worlds = stored_worlds(exact_world_golden)
    assert worlds, f"no world in {exact_world_golden}"
    for stored in worlds:
        world = world_from_mapping(stored)
        teacher, evidence = true_denoiser(world)
        chain = evidence[finished_states(world)]
        found = law_measures(chain, chain, world.length)
        assert found["entropy"] == pytest.approx(stored["data_entropy"], abs=1e-4)
        np.testing.assert_allclose(
            teacher[probe_numbers(stored)], stored["teacher_probabilities"], atol=1e-4, rtol=0
        )
        steps = [int(steps) for steps in stored["teacher"]]
        assert_measures(stored["teacher"], Truth.of(world).measures(teacher, steps))


def test_every_round_of_every_divergence(exact_world_golden: Path) -> None:
    for stored in stored_worlds(exact_world_golden):
        world = world_from_mapping(stored)
        teacher, _ = true_denoiser(world)
        assert stored["rounds"]
        for divergence, rounds in stored["rounds"].items():
            current = teacher
            for number, (dt, expected) in enumerate(zip(world.dts, rounds, strict=True)):
                assert expected["dt"] == pytest.approx(dt), (divergence, number)
                current = round_optimum(current, dt, divergence)
                np.testing.assert_allclose(
                    current[probe_numbers(stored)],
                    expected["probabilities"],
                    atol=1e-4,
                    rtol=0,
                    err_msg=f"{divergence}, round {number}",
                )
                steps = [int(steps) for steps in expected["steps"]]
                assert_measures(expected["steps"], Truth.of(world).measures(current, steps))
