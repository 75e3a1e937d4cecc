"""The rounds of SDTT: each halves the number of steps (arXiv 2410.21035, section 3)."""

import dataclasses

from sdtt_jax.config import one_of, positive, require
from sdtt_jax.distillation.divergence import DIVERGENCES


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """What is distilled, and how fast the step grows.

    Attributes:
      num_rounds: rounds; after each the student becomes the teacher.
      num_distill_steps: k, teacher steps per student step, at least 2.
      teacher_num_steps: steps of the first teacher; the first round's `dt` is one over it.
      min_num_steps: no round trains a student for fewer sampling steps than this; `dt` stops growing.
      divergence: name from `divergence.DIVERGENCES`.
      num_trajectories: teacher trajectories per text. For `kl-bwd` their mean loss is, up to a constant,
        the loss against the mean log-probability: the same optimum with less noise.
      use_ema_on_growth: the next teacher is the student's EMA (False: its raw parameters).
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
        positive(self, "num_rounds", "teacher_num_steps", "min_num_steps", "num_trajectories")
        require(
            self.num_distill_steps >= 2,
            f"num_distill_steps={self.num_distill_steps} must be at least 2: with one teacher step the "
            "student's target is the teacher itself.",
        )
        one_of(self, divergence=DIVERGENCES)


def round_dt(config: DistillConfig, round: int) -> float:
    """The teacher's step `dt` in a round, counted from 1: `k^(round - 1) / teacher_num_steps`.

    Capped so that the student's step, `k dt`, is at most `1 / min_num_steps` (arXiv 2410.21035, algorithm 2).

    Example:
      >>> [1 / round_dt(DistillConfig(), round) for round in (1, 2, 7)]
      [1024.0, 512.0, 16.0]
    """
    k = config.num_distill_steps
    grown = k ** (round - 1) / config.teacher_num_steps
    return min(grown, 1.0 / (k * config.min_num_steps))
