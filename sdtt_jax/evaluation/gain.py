"""The share of a round's possible gain that its student has learned: excess divergence over the floor.

For `kl-bwd` the optimum of a round is the normalised geometric mean of the targets over trajectories, and
the loss there, the floor, is not zero but `-log Z`, Z being the normaliser; for `kl-fwd` the optimum is the
targets' mean, and the floor is their mean divergence from it. The share is

    (teacher's divergence - student's) / (teacher's divergence - floor)

on held-out text: 0 for a student that equals its teacher, 1 for one that has reached the optimum.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require, whole
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs, q_xt, sample_t
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.targets import teacher_targets
from sdtt_jax.interface import DenoiserLike
from sdtt_jax.model.batches import even_offsets, map_batches
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.head_loss import selected_losses
from sdtt_jax.ops.sequences import Sequences, arrange
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.parallel.processes import to_host

FLOORED = ("kl-bwd", "kl-fwd")


class Gain(NamedTuple):
    """Mean divergences from the targets over masked held-out positions, nats; NaN if none was masked."""

    teacher: float  # the round's teacher, which predicts from x_t alone
    student: float  # the round's student
    floor: float  # the least that any prediction from x_t can reach
    share: float  # `(teacher - student) / (teacher - floor)`; NaN if there was nothing to gain


@dataclasses.dataclass(frozen=True)
class GainConfig:
    """How a round is measured."""

    distill: DistillConfig  # k, the divergence (one of `FLOORED`), and which times the teacher sees
    # M, even. The estimate of the floor from M trajectories has a bias of order 1/M, which `2 floor(M) -
    # floor(M / 2)` removes. `floor(M / 2)` is the mean over both halves: the noise of a single half would not
    # be correlated with that of the student's divergence, and the share of a perfect student would scatter
    # several times as much.
    num_trajectories: int

    def __post_init__(self) -> None:
        require(
            self.distill.divergence in FLOORED,
            f"divergence={self.distill.divergence!r} has no known floor; only {' and '.join(FLOORED)} have "
            "one.",
        )
        check_trajectories("num_trajectories", self.num_trajectories)


def check_trajectories(name: str, number: int) -> None:
    """Raises `ConfigError` unless a number of trajectories, called `name`, is even and positive."""
    whole(0, **{name: number})
    require(number > 0 and number % 2 == 0, f"{name} must be even and positive, not {number}.")


def measure_gain(
    student: Model,
    teacher: Model,
    x0: np.ndarray,
    dt: float,
    key: jax.Array,
    config: GainConfig,
    *,
    batch_size: int,
) -> Gain:
    """Measures a round on held-out text.

    Args:
      student, teacher: the round's; they differ only in their parameters.
      x0: `[texts, length]` int32, held out.
      dt: the round's step.
      key: PRNG key; batch i uses `fold_in(key, i)`.
      config: the round's distillation, and how many trajectories.
      batch_size: texts at once; `num_trajectories` hidden states of every position are held.
    """
    x0 = to_host(as_rows(x0, teacher.mask_id, "x0"))
    step = jnp.float32(dt)
    terms = functools.partial(_terms, teacher.diffusion, config, teacher.sequences, step, key)
    rows = x0, even_offsets(len(x0), batch_size)
    sums, masked = map_batches(terms, (student.params, teacher.params), rows, batch_size)
    count = masked.sum()
    if count == 0:
        return Gain(math.nan, math.nan, math.nan, math.nan)
    of_teacher, of_student, floor = (float(column.sum() / count) for column in sums.T)
    to_gain = of_teacher - floor
    share = (of_teacher - of_student) / to_gain if to_gain else math.nan
    return Gain(of_teacher, of_student, floor, share)


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "sequences"))
def _terms(
    diffusion: MaskedDiffusion,
    config: GainConfig,
    sequences: Sequences | None,
    dt: jax.Array,
    key: jax.Array,
    params: tuple[Any, Any],
    index: jax.Array,
    rows: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Sums of `_divergences` over the masked positions of each text, `[batch, 3]`, and their number."""
    student, teacher = params
    batch, offsets = rows
    diffusion = diffusion.within(arrange(batch, sequences))
    denoiser, schedule = diffusion.denoiser, diffusion.schedule
    keys = jax.random.split(jax.random.fold_in(key, index), 2 + config.num_trajectories)
    t = sample_t(keys[0], len(batch), offsets=offsets)
    x_t = q_xt(keys[1], batch, schedule.move_chance(t), denoiser.mask_id, diffusion.free)
    masked = x_t == denoiser.mask_id
    sigma = schedule.sigma(t)
    targets = teacher_targets(diffusion, teacher, keys[2:], x_t, t, dt, config.distill)
    values = selected_losses(
        denoiser,
        student,
        functools.partial(_divergences, denoiser, config.distill.divergence == "kl-bwd"),
        denoiser.hidden(student, x_t, sigma),
        masked,
        (denoiser.hidden(teacher, x_t, sigma), jnp.moveaxis(targets, 0, 2)),
        (denoiser.head_params(teacher),),
    )
    return values.sum(axis=1), masked.sum(axis=-1)


def _divergences(
    denoiser: DenoiserLike,
    backward: bool,
    student_logits: jax.Array,
    states: tuple[jax.Array, jax.Array],
    teacher_head: Any,
) -> jax.Array:
    """Teacher's and student's mean divergence from the targets, and the floor: `[n, 3]`.

    Args:
      denoiser: the network.
      backward: `kl-bwd`, else `kl-fwd`.
      student_logits: `[n, vocab]` float32 at x_t.
      states: the teacher's hidden states at x_t, `[n, embed]`, and the targets', `[n, M, embed]`.
      teacher_head: parameters.
    """
    at_x_t, targets = states

    def teacher_log_probs(hidden: jax.Array) -> jax.Array:
        return masked_log_probs(denoiser.logits(teacher_head, hidden), denoiser.mask_id)

    def add(sums: tuple, target: jax.Array) -> tuple[tuple, None]:
        log_p = teacher_log_probs(target)
        value = log_p if backward else jnp.exp(log_p)
        negative_entropy = (jnp.exp(log_p) * log_p).sum(-1)
        return (sums[0] + value, sums[1] + negative_entropy), None

    student = masked_log_probs(student_logits, denoiser.mask_id)
    zero = (jnp.zeros_like(student), jnp.zeros(student.shape[:1], student.dtype))
    trajectories = jnp.moveaxis(targets, 1, 0)
    half = len(trajectories) // 2
    first, _ = jax.lax.scan(add, zero, trajectories[:half])
    second, _ = jax.lax.scan(add, zero, trajectories[half:])
    halves = [(value / half, entropy / half) for value, entropy in (first, second)]
    full = tuple((a + b) / 2 for a, b in zip(*halves, strict=True))

    def divergence(log_p: jax.Array) -> jax.Array:
        if backward:
            return (jnp.exp(log_p) * (log_p - full[0])).sum(-1)
        return full[1] - (full[0] * log_p).sum(-1)

    def floor(mean_value: jax.Array, mean_negative_entropy: jax.Array) -> jax.Array:
        if backward:
            return -jax.nn.logsumexp(mean_value, axis=-1)
        own = jnp.where(mean_value > 0, mean_value, 1.0)
        return mean_negative_entropy - (mean_value * jnp.log(own)).sum(-1)

    least = 2 * floor(*full) - (floor(*halves[0]) + floor(*halves[1])) / 2
    return jnp.stack([divergence(teacher_log_probs(at_x_t)), divergence(student), least], axis=-1)
