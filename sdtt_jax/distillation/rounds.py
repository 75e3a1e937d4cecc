"""The outer loop of SDTT (arXiv 2410.21035, algorithm 2): round after round, the student becomes the teacher.

Each round halves the number of sampling steps (for k = 2). A run is

    student = Student(teacher_params)
    for number in range(1, config.num_rounds + 1):
        student = train(next_round(config, student, number))
    return delivered_params(config, student)
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from sdtt_jax.config import flags, instance, one_of, require, whole
from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.ops.values import check_numbers
from sdtt_jax.typing import Params

# A shorter step than 2^-23 may end, in float32, at the time at which it begins. Teacher and target are then
# the same, and the loss is 0.
MOST_STEPS = 2**23


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The distillation of all rounds: the targets, the divergence, and how the step grows.

    Attributes:
      num_rounds: rounds; after each the student becomes the teacher.
      num_distill_steps: k, teacher steps per student step, at least 2.
      teacher_num_steps: steps of the first teacher; the first round's `dt` is `1 / teacher_num_steps`.
      min_num_steps: no round trains a student for fewer sampling steps than this; `dt` stops growing.
      divergence: name from `divergence.DIVERGENCES`.
      num_trajectories: teacher trajectories per text. For `kl-bwd` their mean loss is, up to a constant,
        the loss against the mean log-probability: the same optimum with less noise.
      use_ema_on_growth: the next teacher is the student's EMA, if its training keeps one (`ema_decay`);
        False: its raw parameters.
      reset_optimizer_on_growth: a round starts with a fresh optimizer state.
      antithetic: spread the times evenly over a batch (lower variance; each is still uniform).
      reference_times: reproduce the step times of the reference code, which interpolates
        `max(t s + (1 - t)(t - k dt), 1e-5)`, s from 1 to 0, instead of the paper's `t - i dt`.
    """

    num_rounds: int = 7
    num_distill_steps: int = 2
    teacher_num_steps: int = 1024
    min_num_steps: int = 1
    divergence: str = "kl-bwd"
    num_trajectories: int = 1
    use_ema_on_growth: bool = True
    reset_optimizer_on_growth: bool = True
    antithetic: bool = True
    reference_times: bool = False

    def __post_init__(self) -> None:
        whole(1, self, "num_rounds", "teacher_num_steps", "min_num_steps", "num_trajectories")
        whole(0, self, "num_distill_steps")
        require(
            self.num_distill_steps >= 2,
            f"num_distill_steps={self.num_distill_steps} must be at least 2: with one teacher step the "
            "student's target is the teacher itself.",
        )
        fewest = self.num_distill_steps * self.min_num_steps
        both = (
            f"num_distill_steps={self.num_distill_steps} times min_num_steps={self.min_num_steps}"
        )
        teacher = f"teacher_num_steps={self.teacher_num_steps}"
        for steps, named in ((self.teacher_num_steps, teacher), (fewest, both)):
            require(
                steps <= MOST_STEPS,
                f"{named} makes steps so short that float32 does not tell their times apart; take at most "
                f"{MOST_STEPS}.",
            )
        one_of(self, divergence=DIVERGENCES)
        flags(self, "use_ema_on_growth", "reset_optimizer_on_growth")
        flags(self, "antithetic", "reference_times")


def round_dt(config: DistillConfig, round: int) -> float:
    """The teacher's step `dt` in a round, counted from 1: `k^(round - 1) / teacher_num_steps`.

    Capped so that the student's step, `k dt`, is at most `1 / min_num_steps` (arXiv 2410.21035, algorithm 2).

    Examples:
      >>> [1 / round_dt(DistillConfig(), round) for round in (1, 2, 7)]
      [1024.0, 512.0, 16.0]
    """
    instance(DistillConfig, config=config)
    whole(1, round=round)
    round = int(round)  # a NumPy number of few bits would overflow in the power
    k = config.num_distill_steps
    longest = 1.0 / (k * config.min_num_steps)
    if (round - 1) * math.log2(k) > math.log2(config.teacher_num_steps):
        return longest  # before the power grows beyond float64
    return min(k ** (round - 1) / config.teacher_num_steps, longest)


class Student(NamedTuple):
    """A student at the beginning of a round.

    Attributes:
      params: its parameters.
      ema_params, ema_count: their moving average and the updates that it has seen; None starts one at
        `params`, if training keeps an average.
      opt_state: the optimizer's state; None is a fresh one.
      context: what the loss reads and nothing trains: `teacher_params`, `dt: [] float32` and
        `round: [] int32`. It is part of the training state, so a resumed run continues in its round.
    """

    params: Params
    ema_params: Params = None
    ema_count: jax.Array | int = 0
    opt_state: Any = None
    context: Any = None


def delivered_params(config: DistillConfig, student: Any) -> Params:
    """The parameters that a round delivers and the next one distils.

    They are the moving average of `student`, a `Student` or `TrainState`, if `use_ema_on_growth` is set and
    it has one, else its parameters.
    """
    average = student.ema_params if config.use_ema_on_growth else None
    return student.params if average is None else average


def next_round(
    config: DistillConfig,
    previous: Any,
    number: int,
    *,
    teacher_params: Params = None,
    dt: float | None = None,
) -> Student:
    """Starts a round: the student becomes the teacher, with a longer step, and continues to learn.

    It continues from its own parameters, not from their average. The average continues too; the
    optimizer is reset if `reset_optimizer_on_growth` is set.

    Args:
      config: the settings of the distillation.
      previous: the `Student` or `TrainState` at the end of the previous round; before round 1,
        `Student(params)` with the first teacher's parameters.
      number: the round's number, counted from 1.
      teacher_params: the teacher; `delivered_params(config, previous)` if None.
      dt: the teacher's step; `round_dt(config, number)` if None.

    Returns:
      The student, with the context that the round's loss reads. Nothing is copied.

    Examples:
      >>> student = next_round(DistillConfig(), Student(params={"w": 1.0}), 2)
      >>> student.context["teacher_params"], 1 / student.context["dt"].item()
      ({'w': 1.0}, 512.0)
    """
    instance(DistillConfig, config=config)
    require(
        hasattr(previous, "ema_params"),
        "previous must be a Student or a TrainState; if you only have parameters, pass Student(params).",
    )
    if teacher_params is None:
        teacher_params = delivered_params(config, previous)
    dt = round_dt(config, number) if dt is None else dt
    check_numbers("(0, 1]", (), dt=dt)
    return Student(
        params=previous.params,
        ema_params=previous.ema_params,
        ema_count=previous.ema_count,
        opt_state=None if config.reset_optimizer_on_growth else previous.opt_state,
        context={
            "teacher_params": teacher_params,
            "dt": jax.device_put(np.float32(dt)),
            "round": jax.device_put(np.int32(number)),
        },
    )
