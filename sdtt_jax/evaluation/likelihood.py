"""Likelihoods of held-out or generated text, in nats per token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import masked_nll, nelbo, nelbo_weight
from sdtt_jax.diffusion.sampler import SamplerState, final_denoise
from sdtt_jax.evaluation.batches import map_batches
from sdtt_jax.networks.causal import CausalNetwork


# Compiled once per network, not once per call: a run scores a dozen sets of texts.
@functools.partial(jax.jit, static_argnames=("model", "bos_id"))
def _judge_batch(
    model: CausalNetwork, bos_id: int, params: Any, index: jax.Array, batch: jax.Array
) -> jax.Array:
    del index
    return causal_nll(model, params, batch, bos_id).mean(axis=-1)


@functools.partial(jax.jit, static_argnames="diffusion")
def _nelbo_batch(
    diffusion: MaskedDiffusion,
    key: jax.Array,
    params: Any,
    index: jax.Array,
    batch: jax.Array,
) -> jax.Array:
    return nelbo(diffusion, params, batch, jax.random.fold_in(key, index))


def judge_texts(
    model: CausalNetwork, params: Any, tokens: np.ndarray, bos_id: int, batch_size: int
) -> np.ndarray:
    """Mean negative log-likelihood of each text under the judge: `[texts]` float64, nats per token."""

    score = functools.partial(_judge_batch, model, bos_id)
    return map_batches(score, params, tokens, batch_size)


def nelbo_texts(
    diffusion: MaskedDiffusion,
    params: Any,
    tokens: np.ndarray,
    key: jax.Array,
    batch_size: int,
) -> np.ndarray:
    """One-sample NELBO of each text: `[texts]` float64, nats per token (antithetic times in a batch)."""

    bound = functools.partial(_nelbo_batch, diffusion, key)
    return map_batches(bound, params, tokens, batch_size)


def suffix_nll(
    diffusion: MaskedDiffusion,
    params: Any,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """The bound on -log p(suffix | prefix) that one masking of the suffix gives.

    Args:
      diffusion, params: the model.
      x0: `[maskings, length]` int32, prefix and suffix.
      x_t: `[maskings, length]` int32, x0 with suffix tokens masked at times `t`; the prefix stays.
      t: `[maskings]` float32.

    Returns:
      `[maskings]` float32, nats of the whole suffix; the mean over maskings estimates the bound.
    """
    nll = masked_nll(diffusion, params, x0, x_t, diffusion.schedule.sigma(t))
    return nll.sum(axis=-1) * nelbo_weight(diffusion.schedule, t)


def greedy_infill(
    diffusion: MaskedDiffusion, params: Any, x_t: jax.Array, t: jax.Array
) -> jax.Array:
    """`x_t: [batch, length]` int32 with the most probable token at every masked position.

    One network call, as if at time `t: [] float32`, which only a time-conditioned network sees.
    """
    return final_denoise(diffusion, params, SamplerState(x_t, jnp.int32(0)), t).x
