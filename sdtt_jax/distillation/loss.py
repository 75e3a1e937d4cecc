"""The distillation loss: divergence of the student at x_t from the stitched teacher targets."""

import functools

import jax
import jax.numpy as jnp

from sdtt_jax.config import choose, instance
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs, q_xt, sample_t
from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.targets import teacher_targets
from sdtt_jax.interface import DenoiserLike
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import Key, Logits, Params, PerSequence, Scalar, ScalarLike, Tokens, TokensLike


def divergence_terms(
    diffusion: MaskedDiffusion,
    params: Params,
    teacher_params: Params,
    x_t: TokensLike,
    sigma: PerSequence,
    targets: jax.Array,
    divergence: str,
) -> tuple[Scalar, Scalar]:
    """Sum of the divergence over masked positions, and how many there are.

    Args:
      diffusion: the network and schedule that student and teacher share.
      params, teacher_params: their parameters; no gradient flows into the teacher's.
      x_t: `[batch, length]` int32.
      sigma: `[batch]` float32, total noise.
      targets: `[num_trajectories, batch, length, embed]` from `teacher_targets`.
      divergence: name from `DIVERGENCES`.

    Returns:
      `(total, count)`: `[]` float32 each; `total / max(count, 1)` is the loss per masked token (in nats for
      the KL divergences), the mean over trajectories.

    Raises:
      ConfigError: there is no such divergence, `x_t` holds ids that do not exist, or `targets` are of another
        batch.
    """
    choose("divergence", divergence, DIVERGENCES)
    denoiser = diffusion.denoiser
    x_t = jnp.asarray(as_rows(x_t, denoiser.mask_id + 1, "x_t"))
    masked = x_t == denoiser.mask_id
    total, _ = weighted_loss(
        denoiser,
        params,
        functools.partial(_mean_divergence, denoiser, divergence),
        denoiser.hidden(params, x_t, sigma),
        masked.astype(jnp.float32),
        jnp.moveaxis(targets, 0, 2),
        (denoiser.head_params(teacher_params),),
    )
    return total, masked.sum().astype(jnp.float32)


def _mean_divergence(
    denoiser: DenoiserLike, name: str, logits: Logits, targets: jax.Array, teacher_head: Params
) -> jax.Array:
    """Mean divergence of `logits: [n, vocab]` from the targets, `[n, num_trajectories, embed]`: `[n]`."""
    compare = DIVERGENCES[name]
    num_entries, num_trajectories = denoiser.mask_id + 1, targets.shape[1]
    student = masked_log_probs(logits, denoiser.mask_id)
    total = jnp.zeros(logits.shape[:1], logits.dtype)
    for i in range(num_trajectories):
        target = masked_log_probs(denoiser.logits(teacher_head, targets[:, i]), denoiser.mask_id)
        total += compare(student, target, num_entries)
    return total / num_trajectories


def distillation_terms(
    diffusion: MaskedDiffusion,
    params: Params,
    teacher_params: Params,
    x0: TokensLike,
    dt: ScalarLike,
    key: Key,
    config: DistillConfig,
) -> tuple[Scalar, Scalar]:
    """One batch of SDTT: mask, let the teacher take k steps, compare (arXiv 2410.21035, algorithm 1).

    Args:
      diffusion: the network and schedule that student and teacher share.
      params, teacher_params: their parameters; no gradient flows into the teacher's.
      x0: `[batch, length]` int32, clean tokens.
      dt: `[]` float32, the teacher's step, above 0 and at most 1; may be traced, so that one compiled step
        serves all rounds.
      key: PRNG key.
      config: divergence, k and number of trajectories.

    Returns:
      `(total, count)`: `[]` float32 each, the sum of the divergence over masked positions and how many
      there are; `total / max(count, 1)` is the loss per masked token, in nats for the KL divergences.

    Examples:
      >>> import sdtt_jax
      >>> config = sdtt_jax.DenoiserConfig(5, length=8, num_layers=1, embed_dim=16, num_heads=2)
      >>> diffusion = sdtt_jax.MaskedDiffusion(sdtt_jax.Denoiser(config), sdtt_jax.make_schedule())
      >>> params = sdtt_jax.unbox(jax.jit(sdtt_jax.Denoiser(config).init)(jax.random.key(0)))
      >>> x0, dt = jnp.zeros((4, 8), jnp.int32), jnp.float32(1 / 8)
      >>> key, config = jax.random.key(1), DistillConfig(divergence="kl-fwd")
      >>> total, count = distillation_terms(diffusion, params, params, x0, dt, key, config)
      >>> bool(total / count < 1e-5)  # a new network says the same at every step
      True
    """
    t, x_t, key_teacher = distillation_batch(diffusion, x0, key, config)
    keys = jax.random.split(key_teacher, config.num_trajectories)
    targets = teacher_targets(diffusion, teacher_params, keys, x_t, t, dt, config)
    sigma = diffusion.schedule.sigma(t)
    return divergence_terms(
        diffusion, params, teacher_params, x_t, sigma, targets, config.divergence
    )


def distillation_batch(
    diffusion: MaskedDiffusion, x0: TokensLike, key: Key, config: DistillConfig
) -> tuple[PerSequence, Tokens, Key]:
    """A time for each text, the text masked at that time, and the key of the teacher's trajectories.

    Args:
      diffusion: the model.
      x0: `[batch, length]` int32, clean tokens.
      key: PRNG key of the batch.
      config: how times are drawn.

    Returns:
      `t: [batch]` float32, `x_t: [batch, length]` int32, a PRNG key.
    """
    instance(DistillConfig, config=config)
    x0 = jnp.asarray(as_rows(x0, diffusion.mask_id, "x0"))
    key_t, key_mask, key_teacher = jax.random.split(key, 3)
    t = sample_t(key_t, x0.shape[0], antithetic=config.antithetic)
    move_chance = diffusion.schedule.move_chance(t)
    x_t = q_xt(key_mask, x0, move_chance, diffusion.mask_id, diffusion.free)
    return t, x_t, key_teacher
