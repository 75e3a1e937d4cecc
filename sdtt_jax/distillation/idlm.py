"""Inverse distillation (IDLM): trains a student so that the teacher is the optimal denoiser of its texts.

The method is that of arXiv 2602.19066. Let `L(f, p) = -w(t') sum_i <p_i, log f_i(x_t')>` be the denoising
loss of a network f on the student's texts, masked again at a time t'. The student minimises
`L(f*, p) - min_f L(f, p)`: how much worse the teacher f* is on these texts than a denoiser that was trained
on them. That denoiser is the fake. In every step the fake learns from the student's texts and the student
from `<p, log f - log f*>`, each with the other held fixed. The student's gradient flows only through its
distributions p, not through the tokens that the two networks see, which are drawn from
`alpha p + (1 - alpha) MASK`.

The optimum is the teacher's distribution, but on the way the student seeks modes and loses variety. With a
`teacher_temperature` T it learns from `<p, log f - log f* / T>`, whose optimum is the teacher's distribution
of whole texts to the power of 1 / T, normalised.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sdtt_jax.config import positive, whole
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs, q_xt, sample_t
from sdtt_jax.diffusion.nelbo import nelbo_weight
from sdtt_jax.diffusion.reverse import reverse_step
from sdtt_jax.distillation.block import draw_block
from sdtt_jax.interface import DenoiserLike
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.typing import Hidden, Key, Logits, Params, Scalar, Tokens, TokensLike, Tree

STUDENT, FAKE = "student", "fake"


@dataclasses.dataclass(frozen=True)
class InverseConfig:
    """The distribution of texts that inverse distillation aims at."""

    # Temperature of the distribution of whole texts that the student is to learn. At one it is the teacher's
    # distribution, but the loss is mode-seeking; above one the student keeps more variety.
    teacher_temperature: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        positive(self, "teacher_temperature")


@dataclasses.dataclass(frozen=True)
class IdlmConfig(InverseConfig):
    """The sampler that the student is trained for."""

    # The sampler's calls; the student learns from texts masked as one of these calls finds them.
    num_calls: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, self, "num_calls")


def idlm_terms(
    diffusion: MaskedDiffusion,
    params: Tree,
    teacher_params: Params,
    x0: TokensLike,
    key: Key,
    config: IdlmConfig,
) -> tuple[Scalar, Scalar]:
    """The student's loss and the fake's, in nats.

    Args:
      diffusion: the network and schedule that teacher, student and fake share.
      params: `{"student": …, "fake": …}`. The student's loss has no gradient for the fake, nor the fake's for
        the student, so that their sum trains both.
      teacher_params: no gradient flows into them.
      x0: `[batch, length]` int32, clean tokens; the student sees a part of them.
      key: PRNG key.
      config: the sampler that the student is trained for.

    Returns:
      `(student, fake)`: `[]` float32 each, sums over the batch.

    Raises:
      ConfigError: `x0` has another shape, or holds ids that are not tokens.
    """
    key_block, *keys = jax.random.split(key, 4)
    block = draw_block(diffusion, x0, key_block, config.num_calls)
    hidden = diffusion.hidden(params[STUDENT], block.x_t, block.sigma)
    return inverse_terms(
        diffusion, diffusion, params, teacher_params, block.x_t, hidden, keys, config
    )


def inverse_terms(
    student: MaskedDiffusion,
    diffusion: MaskedDiffusion,
    params: Tree,
    teacher_params: Params,
    x_t: Tokens,
    hidden: Hidden,
    keys: Sequence[Key],
    config: InverseConfig,
) -> tuple[Scalar, Scalar]:
    """Both losses, on the student's predictions for partly masked texts.

    Args:
      student: the student, without its parameters.
      diffusion: teacher and fake, without their parameters.
      params, teacher_params: as in `idlm_terms`.
      x_t: `[batch, length]` int32, what the student saw.
      hidden: `[batch, length, embed]`, its hidden states at `x_t`; the gradient flows through them.
      keys: PRNG keys for the tokens that the student draws, for the times, and for the second masking.
      config: the distribution of texts that the loss aims at.

    Returns:
      `(student, fake)`: `[]` float32 each, sums over the batch.
    """
    denoiser, schedule = diffusion.denoiser, diffusion.schedule
    key_draw, key_t, key_mask = keys
    asked = x_t == student.mask_id
    fixed = jax.lax.stop_gradient((params, teacher_params, hidden))
    still, teacher, drawn_from = fixed
    ones = jnp.ones(len(x_t), jnp.float32)
    drawn = reverse_step(student, still[STUDENT], key_draw, x_t, drawn_from, ones)
    t = sample_t(key_t, len(x_t))
    sigma = schedule.sigma(t)
    x_again = q_xt(key_mask, drawn, schedule.move_chance(t), diffusion.mask_id, diffusion.free)
    masked = x_again == diffusion.mask_id
    weights = jnp.where(masked, nelbo_weight(schedule, t)[:, None], 0.0)
    seen_by_fake = diffusion.hidden(params[FAKE], x_again, sigma)
    seen_by_teacher = diffusion.hidden(teacher, x_again, sigma)
    total, _ = weighted_loss(
        student.denoiser,
        params[STUDENT],
        functools.partial(_student_loss, denoiser, config.teacher_temperature),
        hidden,
        jnp.where(asked, weights, 0.0),
        (jax.lax.stop_gradient(seen_by_fake), seen_by_teacher),
        (denoiser.head_params(still[FAKE]), denoiser.head_params(teacher)),
    )
    fake, _ = weighted_loss(
        denoiser,
        params[FAKE],
        functools.partial(_fake_loss, student.denoiser),
        seen_by_fake,
        weights,
        (drawn_from, drawn, asked),
        (student.denoiser.head_params(still[STUDENT]),),
    )
    return total, fake


def _student_loss(
    denoiser: DenoiserLike,
    temperature: float,
    logits: Logits,
    hidden: tuple,
    fake_head: Params,
    teacher_head: Params,
) -> jax.Array:
    """`<p, log f - log f* / temperature>` of the student's `logits: [n, vocab]`: `[n]`."""
    fake, teacher = (
        masked_log_probs(denoiser.logits(head, seen), denoiser.mask_id)
        for head, seen in zip((fake_head, teacher_head), hidden, strict=True)
    )
    p = jnp.exp(masked_log_probs(logits, denoiser.mask_id))
    return (p * (fake - teacher / temperature)).sum(axis=-1)


def _fake_loss(denoiser: DenoiserLike, logits: Logits, rows: tuple, head: Params) -> jax.Array:
    """`-<p, log f>` of the fake's `logits: [n, vocab]`; p is one-hot for tokens that the student saw."""
    hidden, tokens, asked = rows
    p = jnp.exp(masked_log_probs(denoiser.logits(head, hidden), denoiser.mask_id))
    p = jnp.where(asked[:, None], p, jax.nn.one_hot(tokens, p.shape[-1], dtype=p.dtype))
    return -(p * masked_log_probs(logits, denoiser.mask_id)).sum(axis=-1)
