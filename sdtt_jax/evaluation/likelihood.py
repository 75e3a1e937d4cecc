"""Bounds on the likelihood of text under a denoiser, in nats per token."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.estimators import ESTIMATORS, BoundConfig, Noise, bound
from sdtt_jax.diffusion.forward import sample_t
from sdtt_jax.model.batches import batched, join
from sdtt_jax.model.masked import Model


def text_bounds(
    model: Model, tokens: np.ndarray, key: jax.Array, config: BoundConfig, *, batch_size: int
) -> np.ndarray:
    """Estimates of the bound of each text: `[texts, num_maskings]` float64, nats per token.

    Args:
      model: the denoiser.
      tokens: `[texts, length]` int32.
      key: PRNG key; batch i uses `fold_in(key, i)`.
      config: how many maskings, and how each is drawn. Estimators that spread do so over a batch's texts.
      batch_size: texts at once.
    """
    estimates: np.ndarray = join(
        [batch() for batch in bound_batches(model, tokens, key, config, batch_size=batch_size)]
    )
    return estimates


def bound_batches(
    model: Model, tokens: np.ndarray, key: jax.Array, config: BoundConfig, *, batch_size: int
) -> list[Callable[[], np.ndarray]]:
    """The work of `text_bounds`, one function for each batch.

    Args:
      model: the denoiser.
      tokens: `[texts, length]` int32.
      key: PRNG key; batch i uses `fold_in(key, i)`.
      config: how many maskings, and how each is drawn.
      batch_size: texts at once.
    """
    function = functools.partial(_estimates, model.diffusion, config, key)
    return batched(function, model.params, tokens, batch_size)


@functools.partial(jax.jit, static_argnames=("diffusion", "config"))
def _estimates(
    diffusion: MaskedDiffusion,
    config: BoundConfig,
    key: jax.Array,
    params: Any,
    index: jax.Array,
    x0: jax.Array,
) -> jax.Array:
    spread = ESTIMATORS[config.estimator].spread

    def one(key: jax.Array) -> jax.Array:
        key_u, key_mask = jax.random.split(key)
        u = sample_t(key_u, x0.shape[0], antithetic=spread, eps=0.0)
        noise = Noise(u, jax.random.uniform(key_mask, x0.shape))
        return bound(diffusion, params, x0, noise, config.estimator) / x0.shape[1]

    keys = jax.random.split(jax.random.fold_in(key, index), config.num_maskings)
    return jax.lax.map(one, keys).T
