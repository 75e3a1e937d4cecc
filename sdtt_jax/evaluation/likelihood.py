"""Bounds on the likelihood of text under a denoiser, in nats per token."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.estimators import ESTIMATORS, BoundConfig, Noise, bound
from sdtt_jax.diffusion.forward import sample_t
from sdtt_jax.model.batches import batched
from sdtt_jax.model.masked import Model


def text_bounds(
    model: Model, tokens: np.ndarray, key: jax.Array, config: BoundConfig, *, batch_size: int
) -> list[Callable[[], np.ndarray]]:
    """Estimates of the bound of each text, batch by batch.

    Args:
      model: the denoiser.
      tokens: `[texts, length]` int32.
      key: PRNG key; batch i uses `fold_in(key, i)`.
      config: how many maskings, and how each is drawn. Estimators that spread do so over a batch's texts.
      batch_size: texts at once.

    Returns:
      One function for each batch, which returns `[rows, num_maskings]` float64, nats per token.
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
        noise = Noise(u, jax.random.uniform(key_mask, x0.shape, jnp.float32))
        return bound(diffusion, params, x0, noise, config.estimator) / x0.shape[1]

    keys = jax.random.split(jax.random.fold_in(key, index), config.num_maskings)
    return jax.lax.map(one, keys).T
