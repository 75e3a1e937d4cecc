"""The distillation loss: divergence of the student at x_t from the stitched teacher targets."""

from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.masking import DenoiserLike, masked_log_probs, q_xt, sample_t
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.targets import teacher_targets


def divergence_terms(
    denoiser: DenoiserLike,
    params: Any,
    teacher_params: Any,
    x_t: jax.Array,
    sigma: jax.Array,
    targets: jax.Array,
    divergence: str,
) -> tuple[jax.Array, jax.Array]:
    """Sum of the divergence over masked positions, and how many there are.

    Args:
      denoiser: the network.
      params, teacher_params: student's and teacher's parameters.
      x_t: `[batch, length]` int32.
      sigma: `[batch]` float32, total noise.
      targets: `[num_trajectories, batch, length, embed]` from `teacher_targets`.
      divergence: name from `DIVERGENCES`.

    Returns:
      `(total, count)`: `[]` float32 each; `total / max(count, 1)` is the loss in nats per masked token,
      the mean over trajectories.
    """
    compare = DIVERGENCES[divergence]
    num_entries = denoiser.mask_id + 1
    student = masked_log_probs(
        denoiser.logits(params, denoiser.hidden(params, x_t, sigma)), denoiser.mask_id
    )

    def one(target: jax.Array) -> jax.Array:
        logits = denoiser.logits(jax.lax.stop_gradient(teacher_params), target)
        target_log_probs = jax.lax.stop_gradient(masked_log_probs(logits, denoiser.mask_id))
        return compare(student, target_log_probs, num_entries)

    per_position = sum(one(target) for target in targets) / len(targets)
    masked = x_t == denoiser.mask_id
    return jnp.where(masked, per_position, 0.0).sum(), masked.sum().astype(jnp.float32)


def distillation_terms(
    denoiser: DenoiserLike,
    params: Any,
    teacher_params: Any,
    x0: jax.Array,
    dt: jax.Array,
    key: jax.Array,
    schedule: Schedule,
    config: DistillConfig,
) -> tuple[jax.Array, jax.Array]:
    """One batch of SDTT: mask, let the teacher take k steps, compare.

    Args:
      denoiser: the network.
      params, teacher_params: student's and teacher's parameters.
      x0: `[batch, length]` int32, clean tokens.
      dt: `[]` float32, the teacher's step; may be traced, so that one compiled step serves all rounds.
      key: PRNG key.
      schedule: noise schedule.
      config: divergence, k and number of trajectories.

    Returns:
      `(total, count)`, see `divergence_terms`.
    """
    key_t, key_mask, key_teacher = jax.random.split(key, 3)
    t = sample_t(key_t, x0.shape[0], antithetic=config.antithetic)
    x_t = q_xt(key_mask, x0, schedule.move_chance(t), denoiser.mask_id)
    targets = teacher_targets(
        denoiser,
        teacher_params,
        jax.random.split(key_teacher, config.num_trajectories),
        x_t,
        t,
        dt,
        schedule,
        num_distill_steps=config.num_distill_steps,
        reference_times=config.reference_times,
    )
    sigma = schedule.sigma(t)
    return divergence_terms(
        denoiser, params, teacher_params, x_t, sigma, targets, config.divergence
    )
