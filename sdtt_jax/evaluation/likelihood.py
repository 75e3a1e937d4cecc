"""Bounds on the likelihood of text under a denoiser, in nats per token."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.estimators import ESTIMATORS, NEVER, BoundConfig, MaskNoise, masking_bound
from sdtt_jax.diffusion.forward import sample_t
from sdtt_jax.model.batches import batched, even_offsets
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.sequences import Sequences, arrange
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.parallel.processes import to_host


class Bounds(NamedTuple):
    """One estimate of the bound for each masking of each text."""

    nelbo: Any  # `[texts, maskings]` float64, nats per token
    # `[texts, maskings]` int32, number of masked tokens; if it is 0, so is the estimate.
    masked: Any
    # `[texts]` int32, number of tokens that count: neither padding nor prompt. A text weighs that much.
    counted: Any


def text_bounds(
    model: Model, tokens: np.ndarray, key: jax.Array, config: BoundConfig, *, batch_size: int
) -> list[Callable[[], Bounds]]:
    """Functions that estimate the bound of each text, one for each batch.

    Args:
      model: the denoiser.
      tokens: `[texts, length]` int32 without MASK, packed like the model's sequences.
      key: PRNG key; batch i uses `fold_in(key, i)`.
      config: how many maskings, and how each is drawn. Estimators that spread their times do so over the
        texts of a batch.
      batch_size: texts at once.
    """
    model.require_likelihood()
    tokens = to_host(as_rows(tokens, model.mask_id))
    function = functools.partial(_estimates, model.diffusion, config, model.sequences, key)
    rows = tokens, even_offsets(len(tokens), batch_size)
    return batched(function, model.params, rows, batch_size)


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "sequences"))
def _estimates(
    diffusion: MaskedDiffusion,
    config: BoundConfig,
    sequences: Sequences | None,
    key: jax.Array,
    params: Any,
    index: jax.Array,
    rows: tuple[jax.Array, jax.Array],
) -> Bounds:
    x0, offsets = rows
    estimator = ESTIMATORS[config.estimator]
    diffusion = diffusion.within(arrange(x0, sequences))
    free = diffusion.free

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_u, key_mask = jax.random.split(key)
        u = sample_t(key_u, len(x0), antithetic=estimator.spread, eps=0.0, offsets=offsets)
        uniform = jax.random.uniform(key_mask, x0.shape, jnp.float32)
        noise = MaskNoise(u, uniform if free is None else jnp.where(free, uniform, NEVER))
        masking = estimator.mask(diffusion, x0, noise)
        nats = masking_bound(diffusion, params, x0, masking)
        masked = (masking.x_t == diffusion.mask_id).sum(axis=-1, dtype=jnp.int32)
        counted = (
            x0.shape[1] if free is None else jnp.maximum(free.sum(axis=-1, dtype=jnp.float32), 1)
        )
        return nats / counted, masked

    keys = jax.random.split(jax.random.fold_in(key, index), config.num_maskings)
    nelbo, masked = jax.tree.map(jnp.transpose, jax.lax.map(one, keys))
    whole = jnp.full(len(x0), x0.shape[1], jnp.int32)
    return Bounds(nelbo, masked, whole if free is None else free.sum(axis=-1, dtype=jnp.int32))
