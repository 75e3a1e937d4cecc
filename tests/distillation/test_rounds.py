"""Rounds. Oracle: the paper's schedule, dt = k^(r - 1) / 1024 for the teacher of round r."""

import pytest

from sdtt_jax.distillation.rounds import DistillConfig, round_dt
from sdtt_jax.errors import ConfigError


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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_distill_steps": 1}, "num_distill_steps"),
        ({"divergence": "kl"}, "divergence"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"teacher_num_steps": 0}, "teacher_num_steps"),
        ({"min_num_steps": -1}, "min_num_steps"),
        ({"num_trajectories": 0}, "num_trajectories"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        DistillConfig(**fields)
