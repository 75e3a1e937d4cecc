"""The negative evidence lower bound (NELBO) of a masked diffusion model, in nats per token.

With alpha_t the probability that a token is clean at time t, the bound is the expectation over t in [0, 1]
and over masked texts x_t of `weight(t)` times the cross-entropy at the masked positions (MDLM,
arXiv 2406.07524, equation 10). Written naively, one sample of it is

    t = jax.random.uniform(key_t, [batch])
    x_t = jnp.where(jax.random.uniform(key_mask, x0.shape) < move_chance(t)[:, None], mask_id, x0)
    logits = denoiser.logits(params, denoiser.hidden(params, x_t, sigma(t)))
    logits = logits.at[..., mask_id].set(-jnp.inf)  # SUBS: MASK is never the answer,
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), x0[..., None], -1)[..., 0]
    log_p = jnp.where(x_t == mask_id, log_p, 0.0)  # and unmasked tokens are carried over
    weight = dsigma(t) / jnp.expm1(sigma(t))
    nelbo = -(weight[:, None] * log_p).mean(axis=-1)

`denoising_terms` computes the same without an array of `[batch, length, vocab]`: the head, the
cross-entropy and their gradients run at masked positions only, in chunks.

This is the loss to train on, with the reference's ways to draw times. Estimates of the bound for evaluation,
with less variance and without gradients, are in `sdtt_jax.diffusion.estimators`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.config import flags, instance, one_of, require
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import q_xt, sample_t, token_nll
from sdtt_jax.diffusion.schedule import Schedule, bound_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.head_loss import selected_losses, weighted_loss
from sdtt_jax.ops.sequences import nats_per_token
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import (
    Key,
    Params,
    PerSequence,
    PerToken,
    Positions,
    Scalar,
    Tokens,
    TokensLike,
)

WEIGHTINGS = ("nelbo", "even")


@dataclasses.dataclass(frozen=True)
class NelboConfig:
    """How the denoising loss draws times and weighs them.

    Attributes:
      weighting: "nelbo" weights each time as the bound does (`nelbo_weight`, 1/t for the log-linear
        schedule), "even" weights all masked tokens equally (a small model leaves its first plateau sooner).
      antithetic: even spread of times over a batch.
      importance: with "nelbo", draw times so that the weight is flat: lower variance of the bound, but almost
        all times are small. Only for log-linear with eps < 0.567, and for linear with sigma_min > 0.
    """

    weighting: str = "nelbo"
    antithetic: bool = True
    importance: bool = False

    def __post_init__(self) -> None:
        one_of(self, weighting=WEIGHTINGS)
        flags(self, "antithetic", "importance")
        require(
            not (self.importance and self.weighting == "even"),
            "importance=True flattens the weight of the bound; it needs weighting='nelbo'.",
        )


class DenoisingTerms(NamedTuple):
    """The terms of a batch from which every denoising objective is computed."""

    # `[]` float32, the weighted sum of `nll`. The differentiable one: no gradient flows through the others.
    total: Scalar
    nll: PerToken  # `[batch, length]` float32, -log p(x_0 | x_t) at masked positions, 0 elsewhere
    masked: Positions  # `[batch, length]` bool
    weight: PerSequence  # `[batch]` float32, the NELBO's weight of each sequence's time


def nelbo_weight(schedule: Schedule, t: PerSequence) -> PerSequence:
    """`dsigma / expm1(sigma)`, which is `1 / t` for the log-linear schedule: `[batch]` float32."""
    return schedule.dsigma(t) / jnp.expm1(schedule.sigma(t))


def masked_nll(
    diffusion: MaskedDiffusion, params: Params, x0: Tokens, x_t: Tokens, sigma: PerSequence
) -> PerToken:
    """-log p(x_0 | x_t) per token, 0 where `x_t` is not masked (SUBS carries those over).

    Values only: under `jit` differentiating it raises; train on `denoising_terms(…).total`.

    Args:
      diffusion, params: the model.
      x0, x_t: `[batch, length]` int32.
      sigma: `[batch]` float32, total noise.

    Returns:
      `[batch, length]` float32, nats.
    """
    denoiser = diffusion.denoiser
    return selected_losses(
        denoiser,
        params,
        functools.partial(token_nll, mask_id=denoiser.mask_id),
        denoiser.hidden(params, x_t, sigma),
        x_t == denoiser.mask_id,
        x0,
    )


def denoising_terms(
    diffusion: MaskedDiffusion,
    params: Params,
    x0: TokensLike,
    key: Key,
    config: NelboConfig | None = None,
) -> DenoisingTerms:
    """Masks `x0` at random times and predicts it back.

    Args:
      diffusion, params: the model.
      x0: `[batch, length]` int32.
      key: PRNG key.
      config: how times are drawn and weighted; None is the plain bound. With `weighting="nelbo"`,
        `total / x0.size` estimates the NELBO in nats per token, over the schedule's own move chances.

    Returns:
      The terms; `weight` keeps the estimate of the bound unbiased however the times were drawn.

    Raises:
      ConfigError: `importance` is asked of a schedule that has no `importance_t`; or `x0` has another shape,
        or holds ids that are not tokens.

    Examples:
      >>> import sdtt_jax
      >>> config = sdtt_jax.DenoiserConfig(5, length=8, num_layers=1, embed_dim=16, num_heads=2)
      >>> diffusion = sdtt_jax.MaskedDiffusion(sdtt_jax.Denoiser(config), sdtt_jax.make_schedule())
      >>> params = sdtt_jax.unbox(jax.jit(sdtt_jax.Denoiser(config).init)(jax.random.key(0)))
      >>> x0 = jnp.zeros((4, 8), jnp.int32)
      >>> terms = denoising_terms(diffusion, params, x0, jax.random.key(1))
      >>> f"{terms.nll.max():.4f}"  # a new network finds all 5 tokens equally likely: log 5
      '1.6094'
    """
    denoiser, config = diffusion.denoiser, config or NelboConfig()
    x0 = jnp.asarray(as_rows(x0, diffusion.mask_id, "x0"))
    t, weight, x_t = masked_batch(diffusion, x0, key, config)
    masked = x_t == denoiser.mask_id
    total, nll = weighted_loss(
        denoiser,
        params,
        functools.partial(token_nll, mask_id=denoiser.mask_id),
        denoiser.hidden(params, x_t, diffusion.schedule.sigma(t)),
        jnp.where(masked, weight[:, None] if config.weighting == "nelbo" else 1.0, 0.0),
        x0,
    )
    return DenoisingTerms(total, nll, masked, weight)


def masked_batch(
    diffusion: MaskedDiffusion, x0: Tokens, key: Key, config: NelboConfig
) -> tuple[PerSequence, PerSequence, Tokens]:
    """A time for each text, that time's weight in the bound, and the text masked at that time.

    Args:
      diffusion: the model.
      x0: `[batch, length]` int32.
      key: PRNG key.
      config: how times are drawn.

    Returns:
      `t: [batch]` float32, `weight: [batch]` float32, `x_t: [batch, length]` int32.
    """
    instance(NelboConfig, config=config)
    schedule = diffusion.schedule
    key_t, key_mask = jax.random.split(key)
    u = sample_t(key_t, x0.shape[0], antithetic=config.antithetic)
    t, weight = _flat_times(schedule, u) if config.importance else (u, nelbo_weight(schedule, u))
    chance = schedule.move_chance(t)
    return t, weight, q_xt(key_mask, x0, chance, diffusion.mask_id, diffusion.free)


def _flat_times(schedule: Schedule, u: PerSequence) -> tuple[PerSequence, PerSequence]:
    """Times `[batch]` at which `log(1 - alpha)` is linear in `u: [batch]`, and their constant weight.

    They are the reference's, whose log-linear schedule begins at `sigma = eps`; the estimator "importance" of
    `sdtt_jax.diffusion.estimators` begins at `SAMPLING_EPS`, and so covers a little more of the bound.
    """
    if schedule.importance_t is None:
        raise ConfigError(
            "importance sampling of t needs a noise schedule that supports it: log-linear with eps < 0.567, "
            "or linear with sigma_min > 0."
        )
    low, high = schedule.importance_t(jnp.array([0.0, 1.0], jnp.float32))
    # In u the integrand's weight, weight(t) dt/du = d log(1 - alpha)/du, is one constant.
    span = jnp.log(schedule.move_chance(high)) - jnp.log(schedule.move_chance(low))
    t = schedule.importance_t(u)
    return t, jnp.full_like(t, span)


def nelbo(
    diffusion: MaskedDiffusion,
    params: Params,
    x0: TokensLike,
    key: Key,
    config: NelboConfig | None = None,
) -> PerSequence:
    """One-sample estimate of the NELBO of each sequence: `[batch]` float32, nats per token.

    Its exponential bounds the perplexity from above (MDLM, arXiv 2406.07524, equation 10), but for the
    thousandth of a text that log-linear leaves clean. Under a schedule that leaves out more, times are drawn
    from log-linear (`schedule.bound_schedule`), where the training loss is no bound. Values only: under `jit`
    differentiating it raises; train on `denoising_terms(…).total`. NaN for a sequence in which nothing
    counts, such as a prompt alone.

    Args:
      diffusion, params: the model.
      x0: `[batch, length]` int32.
      key: PRNG key.
      config: how times are drawn; None is antithetic.

    Raises:
      ConfigError: `x0` has another shape, or holds ids that are not tokens.
    """
    x0 = jnp.asarray(as_rows(x0, diffusion.mask_id, "x0"))
    schedule, network_sigma = bound_schedule(diffusion.schedule)
    whole = dataclasses.replace(diffusion, schedule=schedule)
    t, weight, x_t = masked_batch(whole, x0, key, config or NelboConfig())
    nll = masked_nll(diffusion, params, x0, x_t, network_sigma(schedule.sigma(t)))
    return nats_per_token(nll * weight[:, None], diffusion.free)
