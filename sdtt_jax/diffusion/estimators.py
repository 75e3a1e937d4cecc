"""Estimators of the NELBO for evaluation, of whole texts or of the tokens after a given beginning.

They give values without gradients, and all begin at the same smallest time, so they estimate the same bound.
A training loss draws its times elsewhere, in `sdtt_jax.diffusion.nelbo.masked_batch`.

With m the move chance, the bound of masked diffusion is the integral of f(m) dm / m between the move chances
of the smallest time and of time 1, where f(m) is the expected negative log-likelihood of the tokens masked at
m (MDLM, arXiv 2406.07524, equation 10). Where a schedule's own move chances leave out much of 0 … 1, those of
log-linear are taken (`schedule.bound_schedule`). The estimators differ in how they draw the masks:

independent   a time t for each row, uniform.
antithetic    the same, with the times of rows that belong together spread evenly.
importance    log m uniform and spread evenly: the weight is flat, but most masks are nearly empty. Takes any
              schedule, whereas `NelboConfig.importance` needs one with `importance_t` and begins later.
low-variance  the number of masked tokens uniform in 1 … L and spread evenly, then a set of that size
              (arXiv 2502.09992, equation 14): no variance from how many tokens a mask happens to have. The
              weights are those of the schedule, so that the integral is the same.
counts        as low-variance, but for all move chances from 0 to 1, a range that the schedule's eps cuts
              short: the weight is L / n, so that for a single token one masking is exact.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc

from sdtt_jax.config import one_of, whole
from sdtt_jax.diffusion.calls import ranks
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS, mask_tokens
from sdtt_jax.diffusion.nelbo import masked_nll, nelbo_weight
from sdtt_jax.diffusion.schedule import Schedule, bound_schedule, values_at

# Stands in for the random numbers of tokens that must not be masked.
NEVER = 2.0


class Masking(NamedTuple):
    """Masked texts, and their weights in the bound."""

    x_t: jax.Array  # `[rows, length]` int32
    sigma: jax.Array  # `[rows]` float32, total noise, which a time-conditioned network sees
    # `[rows]` float32, multiplies the negative log-likelihood of the masked tokens.
    weight: jax.Array


class MaskNoise(NamedTuple):
    """What a masking is made from."""

    u: jax.Array  # `[rows]` float32 in [0, 1), decides how much is masked
    # `[rows, length]` float32 in [0, 1), decides what is masked; `NEVER` for tokens that stay.
    tokens: jax.Array


class Estimator(NamedTuple):
    """One way to mask."""

    # `mask(diffusion, x0, noise)` gives a `Masking`.
    mask: Callable[[MaskedDiffusion, jax.Array, MaskNoise], Masking]
    # Whether `MaskNoise.u` of rows that belong together lies on an even grid (each is still uniform).
    spread: bool


@dataclasses.dataclass(frozen=True)
class BoundConfig:
    """How a bound is estimated."""

    estimator: str = "antithetic"  # one of `ESTIMATORS`
    num_maskings: int = 1  # independent maskings of each text

    def __post_init__(self) -> None:
        one_of(self, estimator=ESTIMATORS)
        whole(1, self, "num_maskings")


def masking_bound(
    diffusion: MaskedDiffusion, params: Any, x0: jax.Array, masking: Masking
) -> jax.Array:
    """The estimate of -log p that a given masking yields.

    Args:
      diffusion, params: the model.
      x0: `[rows, length]` int32.
      masking: the masked texts, and their weights.

    Returns:
      `[rows]` float32, nats.
    """
    nll = masked_nll(diffusion, params, x0, masking.x_t, masking.sigma)
    # A MASK that was in the row before the masking is nothing to predict.
    return jnp.where(x0 == diffusion.mask_id, 0.0, nll).sum(axis=-1) * masking.weight


def count_weight(n: jax.Array, length: jax.Array, low: float, high: float) -> jax.Array:
    """The weight of a mask of n tokens where n is uniform in 1 … length: float32 of the shape of `n`.

    The integral of Binomial(n; length, m) dm / m between the move chances `low` and `high`, times length;
    for all move chances from 0 to 1 it is length / n.

    Args:
      n: masked tokens, any shape.
      length: tokens that may be masked.
      low, high: the smallest and the largest move chance, static.
    """
    n, length = jnp.asarray(n, jnp.float32), jnp.asarray(length, jnp.float32)
    b = length - n + 1  # of the Beta distribution, whose first parameter is n
    return (betainc(n, b, high) - betainc(n, b, low)) * length / n


def _by_time(diffusion: MaskedDiffusion, x0: jax.Array, noise: MaskNoise) -> Masking:
    schedule, network_sigma = bound_schedule(diffusion.schedule)
    t = SAMPLING_EPS + (1.0 - SAMPLING_EPS) * noise.u
    x_t = mask_tokens(x0, noise.tokens, schedule.move_chance(t), diffusion.mask_id)
    return Masking(x_t, network_sigma(schedule.sigma(t)), nelbo_weight(schedule, t))


def _by_weight(diffusion: MaskedDiffusion, x0: jax.Array, noise: MaskNoise) -> Masking:
    schedule, network_sigma = bound_schedule(diffusion.schedule)
    low, high = (jnp.log(jnp.float32(m)) for m in _move_chances(schedule))
    move_chance = jnp.exp(low + (high - low) * noise.u)
    x_t = mask_tokens(x0, noise.tokens, move_chance, diffusion.mask_id)
    return Masking(x_t, network_sigma(-jnp.log1p(-move_chance)), jnp.full_like(noise.u, high - low))


def _by_count(
    diffusion: MaskedDiffusion, x0: jax.Array, noise: MaskNoise, *, whole_range: bool
) -> Masking:
    """Masks exactly n tokens, n uniform.

    A time-conditioned network also needs a time that goes with n: given n, the move chance is
    Beta(n, L - n + 1), as is the n-th smallest of L uniform numbers, which does not depend on their order.
    """
    may = noise.tokens < NEVER
    # A row in which nothing may be masked is computed as if one token might be; nothing of it is counted.
    length = jnp.maximum(may.sum(axis=-1, dtype=jnp.int32), 1)
    n = (
        jnp.minimum(jnp.floor(noise.u * length.astype(jnp.float32)).astype(jnp.int32), length - 1)
        + 1
    )
    ordered = jnp.sort(noise.tokens, axis=-1)
    last = jnp.take_along_axis(ordered, n[:, None] - 1, axis=-1)
    masked = may & (ranks(noise.tokens) < n[:, None])
    x_t = jnp.where(masked, diffusion.mask_id, x0).astype(jnp.int32)
    schedule, network_sigma = bound_schedule(diffusion.schedule)
    low, high = _move_chances(schedule)
    sigma = network_sigma(-jnp.log1p(-jnp.clip(last[:, 0], low, high)))
    share = length.astype(jnp.float32) / n.astype(jnp.float32)
    weight = share if whole_range else count_weight(n, length, low, high)
    return Masking(x_t, sigma, weight)


def _move_chances(schedule: Schedule) -> tuple[float, float]:
    """The move chances at the smallest time and at time 1."""
    (low, high), _ = values_at(schedule, SAMPLING_EPS, 1.0)
    return low, high


ESTIMATORS: dict[str, Estimator] = {
    "independent": Estimator(_by_time, spread=False),
    "antithetic": Estimator(_by_time, spread=True),
    "importance": Estimator(_by_weight, spread=True),
    "low-variance": Estimator(functools.partial(_by_count, whole_range=False), spread=True),
    "counts": Estimator(functools.partial(_by_count, whole_range=True), spread=True),
}
