"""A student with a latent value for each text: a mixture of factorised students (Di4C, arXiv 2410.08709).

Given the value z, the student's tokens are independent, but under `sum_z r_z prod_i p_i(x_i | x_t, z)` they
are not. The student learns the joint distribution of the tokens that the teacher's k calls reveal. The
loss is the joint cross-entropy, split as in section 4 of the paper into a term for correlations, on the
teacher's draws,

    -log sum_z r_z prod_i p_i(x_i | x_t, z) + sum_i log sum_z r_z p_i(x_i | x_t, z),

and a term for the mixture's marginals, which uses the teacher's distributions q_i instead of its draws,

    -sum_i sum_v q_i(v) log sum_z r_z p_i(v | x_t, z).

Here a sampler draws the value once for a text and keeps it, so x_t carries information about it. The weights
r_z are the value's posterior if a single call wrote what x_t shows, `r_z ~ prod_i p_i(x_i | MASK, z)`: exact
for a sampler of two calls. Even weights would ignore which values probably wrote x_t.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdtt_jax.config import require, whole, within
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS, masked_log_probs, q_xt, sample_t
from sdtt_jax.diffusion.reverse import reverse_step
from sdtt_jax.diffusion.sampler import prior_sample
from sdtt_jax.distillation.block import token_log_probs
from sdtt_jax.distillation.targets import first_call, last_call
from sdtt_jax.errors import ConfigError
from sdtt_jax.interface import DenoiserLike
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.ops.noise import LATENT, every_value, num_values
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import Hidden, Key, Logits, Params, PerSequence, Scalar, Tokens, TokensLike


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """The teacher's calls that the mixture learns."""

    num_calls: int = 8  # the teacher's calls on its grid of times, `1 / num_calls` each
    # k, the number of them that the student learns to take at once; if k is all of them, it writes a text
    # in one call.
    num_distill_calls: int = 8
    full_share: float = 0.4  # share of the states that are fully masked

    def __post_init__(self) -> None:
        whole(2, self, "num_calls", "num_distill_calls")
        within("[0, 1]", self, "full_share")
        require(
            self.num_distill_calls <= self.num_calls,
            f"num_distill_calls={self.num_distill_calls} must be at most num_calls={self.num_calls}, "
            "the teacher's calls from all MASK to the end.",
        )


def mixture_terms(
    diffusion: MaskedDiffusion,
    params: Params,
    teacher: MaskedDiffusion,
    teacher_params: Params,
    x0: TokensLike,
    key: Key,
    config: MixtureConfig,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of the mixture on the tokens that the teacher's k calls reveal, and their number.

    Args:
      diffusion, params: the student; it sees a text's latent value.
      teacher, teacher_params: the model that it learns from, which sees no latent value.
      x0: `[batch, length]` int32, clean tokens.
      key: PRNG key.
      config: the teacher's calls.

    Returns:
      `(total, count)`: `[]` float32 each; `total / max(count, 1)` is the loss in nats per revealed token.

    Raises:
      ConfigError: the student sees no latent value; or `x0` has another shape, or holds ids that are not
        tokens.
    """
    kind = diffusion.noise_kind or ""
    if not kind.startswith(LATENT):
        raise ConfigError(
            "A mixture needs a student that sees a latent value of its text; make it a coupled network with "
            'noise.kind="latent".'
        )
    x_t, t, x_s, targets = _reveal(diffusion, teacher, teacher_params, x0, key, config)
    revealed = (x_t == diffusion.mask_id) & (x_s != diffusion.mask_id)
    denoiser = diffusion.denoiser
    hidden = _each_value(diffusion, params, x_t, diffusion.schedule.sigma(t))
    shares = jax.lax.stop_gradient(log_shares(diffusion, params, x_t))
    values = shares.shape[1]
    log_probs = token_log_probs(
        denoiser, params, hidden, jnp.repeat(revealed, values, 0), jnp.repeat(x_s, values, 0)
    ).reshape(-1, values, x_t.shape[1])
    joint = jax.nn.logsumexp(shares + log_probs.sum(axis=-1), axis=1)
    each = jax.nn.logsumexp(shares[..., None] + log_probs, axis=1)
    correlation = (each.sum(axis=-1) - joint).sum()
    hidden = hidden.reshape(-1, values, *hidden.shape[1:])
    marginal, _ = weighted_loss(
        denoiser,
        params,
        functools.partial(_marginal_loss, teacher.denoiser),
        jnp.moveaxis(hidden, 1, 2),
        revealed.astype(jnp.float32),
        (targets, jnp.broadcast_to(shares[:, None], (*x_t.shape, values))),
        (teacher.denoiser.head_params(teacher_params),),
    )
    return correlation + marginal, revealed.sum().astype(jnp.float32)


def _reveal(
    diffusion: MaskedDiffusion,
    teacher: MaskedDiffusion,
    teacher_params: Params,
    x0: TokensLike,
    key: Key,
    config: MixtureConfig,
) -> tuple[Tokens, jax.Array, Tokens, Hidden]:
    """Masked texts, their times, the texts after the teacher's calls, and the stitched target states."""
    x0 = jnp.asarray(as_rows(x0, diffusion.mask_id, "x0"))
    key_t, key_mask, key_teacher = jax.random.split(key, 3)
    even = sample_t(key_t, len(x0), eps=0.0)
    along = (even - config.full_share) / max(1.0 - config.full_share, 1e-6)
    t = jnp.where(even < config.full_share, 1.0, jnp.clip(along, SAMPLING_EPS, 1.0))
    # Nothing is shown at time 1, even under a schedule that leaves some tokens clean there.
    chance = jnp.where(t == 1.0, 1.0, diffusion.schedule.move_chance(t))
    x_t = q_xt(key_mask, x0, chance, diffusion.mask_id)
    dt, k = jnp.float32(1 / config.num_calls), config.num_distill_calls
    first, steps = first_call(teacher, teacher_params, x_t, t, dt, k)
    last = last_call(teacher, teacher_params, key_teacher, first, steps)
    key_last = jax.random.fold_in(key_teacher, k - 1)
    x_s = reverse_step(teacher, teacher_params, key_last, last.x, last.hidden, steps.probs[-1])
    return x_t, t, x_s, last.targets


def log_shares(diffusion: MaskedDiffusion, params: Params, x_t: Tokens) -> jax.Array:
    """Log of the weight of each value, given what a text shows: `[batch, values]` float32.

    With everything masked, the weights are even. The network is called once per value, on MASK alone.

    Args:
      diffusion, params: a mixture.
      x_t: `[batch, length]` int32.
    """
    denoiser, (batch, length) = diffusion.denoiser, x_t.shape
    sigma = diffusion.schedule.sigma(jnp.ones(1, jnp.float32))
    hidden = _each_value(diffusion, params, prior_sample(1, length, diffusion.mask_id), sigma)
    values = len(hidden)
    shown = jnp.repeat(x_t != diffusion.mask_id, values, 0)
    tokens = jnp.repeat(x_t, values, 0)
    log_probs = token_log_probs(denoiser, params, jnp.tile(hidden, (batch, 1, 1)), shown, tokens)
    return jax.nn.log_softmax(log_probs.sum(axis=-1).reshape(batch, values))


def _each_value(
    diffusion: MaskedDiffusion, params: Params, x_t: Tokens, sigma: PerSequence
) -> Hidden:
    """Hidden states of each text under each value; the rows of one text are consecutive."""
    kind = diffusion.noise_kind
    assert kind is not None
    values = num_values(kind)
    noise = every_value(kind, *x_t.shape)
    tokens = jnp.repeat(x_t, values, 0)
    return diffusion.hidden(params, tokens, jnp.repeat(sigma, values, 0), noise)


def _marginal_loss(
    teacher: DenoiserLike, logits: Logits, rows: tuple[jax.Array, jax.Array], head: Params
) -> jax.Array:
    """Cross-entropy of the mixture of `logits: [n, values, vocab]` on the teacher's distribution: `[n]`."""
    target, log_shares = rows
    tokens = teacher.mask_id  # without padding, which may differ between the two models
    log_probs = masked_log_probs(logits, tokens)[..., :tokens] + log_shares[..., None]
    mixed = jax.nn.logsumexp(log_probs, axis=1)
    wanted = jnp.exp(masked_log_probs(teacher.logits(head, target), tokens)[..., :tokens])
    return -(wanted * mixed).sum(axis=-1)
