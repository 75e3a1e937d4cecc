"""The record of a world. Oracles: exact sums of the sampler, and students that land where they are told."""

from collections.abc import Iterator

import numpy as np
import pytest

from sdtt_jax.laboratory import record as record_module
from sdtt_jax.laboratory.optimum import mean_kl, round_optimum
from sdtt_jax.laboratory.record import TRAINED_STEPS, Record, Truth, closed_form, train_students
from sdtt_jax.laboratory.student import StudentConfig
from sdtt_jax.laboratory.world import (
    Array,
    World,
    law_measures,
    reveal_sums,
    sample_distribution,
    true_denoiser,
)

WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.1, 0.2), name="weather")


def test_the_record_holds_every_round_and_step() -> None:
    truth, lines = Truth.of(WORLD), []
    record, optima = closed_form(truth, ("kl-bwd", "tvd"), WORLD.dts, lines.append)
    assert record["world"]["num_states"] == 27
    assert [entry["dt"] for entry in record["rounds"]["tvd"]] == [0.1, 0.2]
    last = record["rounds"]["kl-bwd"][1]
    law = sample_distribution(reveal_sums(optima["kl-bwd"][1]), 8)
    measured = law_measures(law, truth.chain, 3)
    assert {name: last["steps"]["8"][name] for name in measured} == pytest.approx(measured)
    assert last["floor"] < last["teacher_divergence"]
    assert [line.split(":")[0] for line in lines] == ["kl-bwd", "tvd"]
    assert f"{last['steps']['3']['kl']:.3f}" in lines[0]


def perfect_rounds(
    world: World,
    config: StudentConfig,
    params: None,
    dts: tuple[float, ...],
    divergence: str,
) -> Iterator[tuple[Array, float]]:
    """Stands in for training: lands on every optimum, up to a blur."""
    del config, params
    teacher = true_denoiser(world)[0]
    for dt in dts:
        teacher = round_optimum(teacher, dt, divergence)
        blurred = np.where(teacher < 1, 0.99 * teacher + 0.005, teacher)
        yield blurred * (teacher > 0), 0.5


def trained(monkeypatch: pytest.MonkeyPatch, world: World) -> tuple[Truth, Record, Array]:
    """The world, its record with perfect students, and the optimum of the first round of kl-bwd."""
    truth = Truth.of(world)
    monkeypatch.setattr(record_module, "copy_teacher", lambda *_: None)
    monkeypatch.setattr(record_module, "predictions", lambda *_: truth.teacher)
    monkeypatch.setattr(record_module, "train_rounds", perfect_rounds)
    record, optima = closed_form(truth, ("kl-bwd",), world.dts, print)
    train_students(truth, record, optima, StudentConfig(), print)
    return truth, record, optima["kl-bwd"][0]


def test_where_tokens_are_independent_there_is_no_gain_to_take_a_share_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The teacher is its own optimum, up to rounding."""
    coins = World((0.3, 0.7), ((0.3, 0.7), (0.3, 0.7)), 3, (0.1, 0.2), name="coins")
    _, record, _ = trained(monkeypatch, coins)
    for entry in record["rounds"]["kl-bwd"]:
        assert entry["trained"]["relative"] is None
        assert entry["trained"]["relative_to_first"] is None
        assert entry["trained"]["kl_to_optimum"] > 0


def test_a_student_is_measured_by_its_distance_to_the_optimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: mean_kl of the blurred optimum."""
    truth, record, optimum = trained(monkeypatch, WORLD)
    assert record["training"]["copy_kl"] == 0
    first = record["rounds"]["kl-bwd"][0]
    blurred = np.where((optimum > 0) & (optimum < 1), 0.99 * optimum + 0.005, optimum)
    distance = mean_kl(optimum, blurred, truth.probabilities)
    assert first["trained"]["kl_to_optimum"] == pytest.approx(distance)
    assert first["trained"]["own_kl"] == pytest.approx(distance)
    assert first["trained"]["relative"] == pytest.approx(distance / first["kl_from_teacher"])
    assert set(first["trained"]["steps"]) == {str(n) for n in TRAINED_STEPS}
