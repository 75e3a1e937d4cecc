"""Rounds. Oracles: the paper's schedule, dt = k^(r - 1) / 1024 in round r, and its algorithm 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.distillation.rounds import (
    DistillConfig,
    Student,
    delivered_params,
    next_round,
    round_dt,
)
from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import replicated
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.state import StateSpec


def test_each_round_multiplies_the_step_by_k():
    config = DistillConfig()
    assert [1 / round_dt(config, r) for r in range(1, 8)] == [1024, 512, 256, 128, 64, 32, 16]
    by_four = DistillConfig(num_distill_steps=4, teacher_num_steps=256)
    assert [1 / round_dt(by_four, r) for r in (1, 2, 3)] == [256, 64, 16]


def test_the_student_never_steps_further_than_the_fewest_steps_allow():
    config = DistillConfig(teacher_num_steps=16, min_num_steps=4)
    assert [round_dt(config, r) for r in (1, 2, 3, 9)] == [1 / 16, 1 / 8, 1 / 8, 1 / 8]
    whole = DistillConfig(teacher_num_steps=2)
    assert round_dt(whole, 5) == 0.5, "two teacher steps cover all of time"
    # Beyond float64, as 2^1099 / 1024 is.
    assert round_dt(DistillConfig(), 1100) == 0.5
    assert round_dt(DistillConfig(num_distill_steps=10**6), 60) == 1e-6


def test_the_shortest_step_that_is_taken_ends_earlier_than_it_begins():
    shortest = np.float32(round_dt(DistillConfig(teacher_num_steps=2**23), 1))
    assert np.float32(1) - shortest < 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_distill_steps": 1}, "num_distill_steps"),
        ({"divergence": "kl"}, "divergence"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"teacher_num_steps": 0}, "teacher_num_steps"),
        ({"min_num_steps": -1}, "min_num_steps"),
        ({"num_trajectories": 0}, "num_trajectories"),
        ({"teacher_num_steps": 2**23 + 1}, "teacher_num_steps=8388609 makes steps so short"),
        ({"teacher_num_steps": 10**9}, "take at most 8388608"),
        ({"min_num_steps": 2**22 + 1}, "num_distill_steps=2 times min_num_steps=4194305 makes"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        DistillConfig(**fields)


def trained(student: Student) -> Student:
    """A training that can be followed by hand: every number at the start changes the result."""
    teacher, dt = student.context["teacher_params"], student.context["dt"]
    momentum = (0.0 if student.opt_state is None else student.opt_state) + teacher * dt
    params = 2 * student.params + momentum
    average = student.params if student.ema_params is None else student.ema_params
    return Student(params, (average + params) / 2, student.ema_count + 1, momentum)


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_the_rounds_are_the_paper_s_algorithm_2(use_ema, reset):
    """Oracle: the algorithm in plain numbers; dt doubles, the student becomes the teacher."""
    config = DistillConfig(
        teacher_num_steps=8, use_ema_on_growth=use_ema, reset_optimizer_on_growth=reset
    )
    student = Student(3.0)
    teacher = params = average = 3.0
    dt, momentum = 1 / 8, 0.0
    for number in (1, 2, 3):
        student = trained(next_round(config, student, number))
        momentum = (0.0 if reset else momentum) + teacher * dt
        params = 2 * params + momentum
        average = (average + params) / 2
        teacher, dt = (average if use_ema else params), 2 * dt
        np.testing.assert_allclose(student.params, params)
        np.testing.assert_allclose(delivered_params(config, student), teacher)
    assert student.ema_count == 3, "the average goes on across rounds"


def test_the_first_student_starts_as_its_teacher():
    student = next_round(DistillConfig(), Student({"w": 1.0}), 1)
    assert student.params is student.context["teacher_params"]
    assert (student.ema_params, student.ema_count, student.opt_state) == (None, 0, None)
    assert (float(student.context["dt"]), int(student.context["round"])) == (1 / 1024, 1)


def test_without_an_average_the_parameters_are_delivered():
    assert delivered_params(DistillConfig(use_ema_on_growth=True), Student(1.0)) == 1.0


def test_teacher_and_step_may_come_from_elsewhere():
    student = next_round(DistillConfig(), Student(1.0), 2, teacher_params=7.0, dt=0.3)
    assert student.params == 1.0
    assert student.context["teacher_params"] == 7.0
    assert student.context["dt"] == jnp.float32(0.3)


def test_a_training_state_is_what_a_round_leaves_and_what_the_next_is_made_into():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    spec = StateSpec(TrainConfig(4, 8, ema_decay=0.9), mesh)
    config = DistillConfig(reset_optimizer_on_growth=False)
    params = jax.device_put({"kernel": jnp.ones((2, 3))}, replicated(mesh))
    state = spec.from_params(**next_round(config, Student(params), 1)._asdict())
    state = state.replace(
        params={"kernel": 2 * state.params["kernel"]},
        ema_params={"kernel": 3 * state.ema_params["kernel"]},
        ema_count=state.ema_count + 5,
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
        step=state.step + 4,
    )
    grown = spec.from_params(**next_round(config, state, 2)._asdict())
    assert int(grown.step) == 0
    assert int(grown.ema_count) == 5
    for left, right in (
        (grown.params, state.params),
        (grown.ema_params, state.ema_params),
        (grown.opt_state, state.opt_state),
        (grown.context["teacher_params"], state.ema_params),
    ):
        jax.tree.map(np.testing.assert_array_equal, left, right)
    assert float(grown.context["dt"]) == 2 / 1024


@pytest.mark.parametrize("name", ["num_rounds", "num_distill_steps", "teacher_num_steps"])
def test_what_is_counted_is_a_whole_number(name):
    with pytest.raises(ConfigError, match=f"{name} must be a whole number, not 2.5"):
        DistillConfig(**{name: 2.5})


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "save_every", "keep_every"])
def test_so_it_is_in_training(name):
    with pytest.raises(ConfigError, match=f"{name} must be a whole number, not 2.5"):
        TrainConfig(**{"num_steps": 10, "batch_size": 4} | {name: 2.5})


def test_rounds_count_from_one_and_a_student_is_more_than_parameters():
    with pytest.raises(ConfigError, match="round must be positive, not 0"):
        round_dt(DistillConfig(), 0)
    with pytest.raises(ConfigError, match=r"if you only have parameters, pass Student\(params\)"):
        next_round(DistillConfig(), {"w": 1.0}, 1)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_the_step_of_a_round_numbered_by_numpy_is_that_of_the_plain_number(kind):
    """In 8 bits 2^8 is 0. Oracle: Python's whole numbers."""
    for number in (1, 2, 9):
        found = round_dt(DistillConfig(), kind(number))
        assert type(found) is float
        assert found == round_dt(DistillConfig(), number)
