"""The NELBO by four estimators of one integral, in nats per token.

With m the move chance, the bound of masked diffusion is the integral of f(m) dm / m between the move
chances of the smallest time and of time 1, f(m) the expected negative log-likelihood of what is masked at m
(MDLM, arXiv 2406.07524, equation 10). The estimators differ in how they draw the masks:

independent   t uniform for each text.
antithetic    t uniform, and spread evenly over the batch.
importance    log m uniform and spread evenly: the weight is flat, but most masks are nearly empty.
low-variance  the number of masked tokens uniform in 1 … L and spread evenly, then a set of that size
              (arXiv 2502.09992, equation 14): no variance from how many tokens a mask happens to have. The
              weights are those of this schedule, so that the integral is the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from sdtt_jax.config import require
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS, q_xt, sample_t
from sdtt_jax.diffusion.nelbo import masked_nll, nelbo_weight
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.evaluation.batches import BatchFunction

ESTIMATORS = ("independent", "antithetic", "importance", "low-variance")


def bound_estimates(
    diffusion: MaskedDiffusion, key: jax.Array, *, estimator: str, num_maskings: int
) -> BatchFunction:
    """A batch function that estimates the bound of each text: `[rows, length]` to `[rows, num_maskings]`.

    Args:
      diffusion: the model.
      key: PRNG key; batch i uses `fold_in(key, i)`.
      estimator: one of `ESTIMATORS`.
      num_maskings: independent estimates per text.

    Raises:
      ConfigError: an unknown estimator, or no maskings.
    """
    require(
        estimator in ESTIMATORS,
        f"estimator={estimator!r} is unknown; choose one of {', '.join(ESTIMATORS)}.",
    )
    require(num_maskings > 0, f"num_maskings must be positive, not {num_maskings}.")
    return functools.partial(_estimates, diffusion, estimator, num_maskings, key)


@functools.partial(jax.jit, static_argnames=("diffusion", "estimator", "num_maskings"))
def _estimates(
    diffusion: MaskedDiffusion,
    estimator: str,
    num_maskings: int,
    key: jax.Array,
    params: Any,
    index: jax.Array,
    x0: jax.Array,
) -> jax.Array:
    mask = _count_mask if estimator == "low-variance" else functools.partial(_time_mask, estimator)

    def one(key: jax.Array) -> jax.Array:
        x_t, sigma, weight = mask(key, x0, diffusion.schedule, diffusion.mask_id)
        nll = masked_nll(diffusion, params, x0, x_t, sigma)
        return nll.sum(axis=-1) * weight / x0.shape[1]

    keys = jax.random.split(jax.random.fold_in(key, index), num_maskings)
    return jax.lax.map(one, keys).T


def _time_mask(
    estimator: str, key: jax.Array, x0: jax.Array, schedule: Schedule, mask_id: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x_t: [batch, length]`, and sigma and weight of each text, `[batch]`."""
    key_t, key_mask = jax.random.split(key)
    batch = x0.shape[0]
    if estimator == "importance":
        low, high = (jnp.log(m) for m in _move_chances(schedule))
        u = sample_t(key_t, batch, eps=0.0)
        move_chance = jnp.exp(low + (high - low) * u)
        sigma, weight = -jnp.log1p(-move_chance), jnp.full((batch,), high - low)
    else:
        t = sample_t(key_t, batch, antithetic=estimator == "antithetic")
        move_chance = schedule.move_chance(t)
        sigma, weight = schedule.sigma(t), nelbo_weight(schedule, t)
    return q_xt(key_mask, x0, move_chance, mask_id), sigma, weight


def _count_mask(
    key: jax.Array, x0: jax.Array, schedule: Schedule, mask_id: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `_time_mask`, with exactly n masked tokens, n uniform.

    A time-conditioned network also needs a time that goes with n: given n, the move chance is
    Beta(n, L - n + 1), as is the n-th smallest of L uniform numbers, which is how it is drawn here.
    """
    key_count, key_set, key_time = jax.random.split(key, 3)
    batch, length = x0.shape
    u = sample_t(key_count, batch, eps=0.0)
    count = jnp.minimum(jnp.floor(u * length).astype(jnp.int32), length - 1) + 1
    order = jnp.argsort(jnp.argsort(jax.random.uniform(key_set, x0.shape), axis=-1), axis=-1)
    x_t = jnp.where(order < count[:, None], mask_id, x0).astype(jnp.int32)
    sorted_uniform = jnp.sort(jax.random.uniform(key_time, x0.shape), axis=-1)
    move_chance = jnp.take_along_axis(sorted_uniform, count[:, None] - 1, axis=-1)[:, 0]
    low, high = _move_chances(schedule)
    sigma = -jnp.log1p(-jnp.clip(move_chance, low, high))
    return x_t, sigma, jnp.asarray(count_weights(schedule, length), jnp.float32)[count]


def count_weights(schedule: Schedule, length: int) -> np.ndarray:
    """What a mask of n tokens weighs when n is uniform in 1 … length: `[length + 1]` float64, 0 at n = 0.

    The integral of Binomial(n; length, m) dm / m between the move chances of the schedule, times length: with
    move chances from 0 to 1 it is length / n.
    """
    low, high = (float(m) for m in _move_chances(schedule))
    n = np.arange(1, length + 1)
    inside = special.betainc(n, length - n + 1, high) - special.betainc(n, length - n + 1, low)
    return np.concatenate([[0.0], inside * length / n])


def _move_chances(schedule: Schedule) -> tuple[jax.Array, jax.Array]:
    """At the smallest time and at time 1."""
    with jax.ensure_compile_time_eval():
        low, high = schedule.move_chance(jnp.array([SAMPLING_EPS, 1.0], jnp.float32))
        return low, high
