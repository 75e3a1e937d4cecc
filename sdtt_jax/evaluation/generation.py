"""Texts from a model, and what they are worth: generative perplexity, always with entropy beside it."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.evaluation.batches import BatchFunction, batch_rows, batches, run_batch
from sdtt_jax.evaluation.bootstrap import Interval, bootstrap, exp_mean, mean
from sdtt_jax.networks.causal import CausalNetwork


@functools.partial(jax.jit, static_argnames=("diffusion", "config"))
def _fill(
    diffusion: MaskedDiffusion,
    config: SamplerConfig,
    key: jax.Array,
    params: Any,
    index: jax.Array,
    x_init: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    state, _ = sample(diffusion, params, jax.random.fold_in(key, index), x_init, config)
    return state.x, jnp.broadcast_to(state.nfe, x_init.shape[:1])


def fill(diffusion: MaskedDiffusion, config: SamplerConfig, key: jax.Array) -> BatchFunction:
    """What `run_batch` needs to fill the MASK positions of `[rows, length]`: the sampler's batch function.

    Batch i uses `fold_in(key, i)`, so two models with one key share all noise. Its results are tokens
    `[rows, length]` int32 and the network calls of the batch, `[rows]` int32, the same for each row.
    """
    return functools.partial(_fill, diffusion, config, key)


def proceed(
    network: CausalNetwork, num_tokens: int, key: jax.Array, **filters: Any
) -> BatchFunction:
    """As `fill`, for a causal network: prompts `[rows, n]` to `[rows, n + num_tokens]`, with its cache.

    Args:
      network: the network.
      num_tokens: how many tokens follow the prompt; as many network calls.
      key: PRNG key; batch i uses `fold_in(key, i)`.
      **filters: temperature, top_k, top_p.
    """

    def function(params: Any, index: jax.Array, prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = generate(
            network,
            params,
            jax.random.fold_in(key, index),
            prompt=prompt,
            num_tokens=num_tokens,
            **filters,
        )
        return tokens, jnp.full(len(prompt), num_tokens, jnp.int32)

    return function


def sample_texts(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array,
    *,
    num_texts: int,
    length: int,
    batch_size: int,
    config: SamplerConfig,
) -> tuple[np.ndarray, float]:
    """Unconditional texts, in batches.

    Args:
      diffusion, params: the model; the parameters may live on a mesh.
      key: PRNG key; see `fill`.
      num_texts: how many.
      length: tokens per text.
      batch_size: texts at once.
      config: sampler.

    Returns:
      Tokens `[num_texts, length]` int32, and the mean number of network calls of a batch.
    """
    size = batch_rows(params, batch_size)
    function = fill(diffusion, config, key)
    texts, calls = [], []
    for index, batch in enumerate(batches(masks(num_texts, length, diffusion.mask_id), size)):
        tokens, nfe = run_batch(function, params, index, batch, size)
        texts.append(tokens)
        calls.append(int(nfe[0]))
    return np.concatenate(texts), float(np.mean(calls))


def masks(num_texts: int, length: int, mask_id: int) -> np.ndarray:
    """Texts of nothing but MASK: `[num_texts, length]` int32."""
    return np.full((num_texts, length), mask_id, np.int32)


def unigram_entropy(texts: Iterable[np.ndarray]) -> np.ndarray:
    """Entropy of the tokens within each text: `[texts]` float64, nats.

    The field's guard against repetition: a text of one repeated token has 0, and so has an empty one.

    Args:
      texts: `[texts, length]`, or arrays of different lengths.
    """
    entropies = []
    for row in texts:
        ordered = np.sort(row)
        edges = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])
        share = np.diff(np.flatnonzero(edges)) / max(len(row), 1)
        entropies.append(-(share * np.log(share)).sum() if len(row) else 0.0)
    return np.array(entropies)


def perplexity(nll: np.ndarray, *, seed: int, resamples: int = 2000) -> Interval:
    """Perplexity over all tokens with a bootstrap over texts; `nll: [texts]`, nats per token."""
    return bootstrap(exp_mean, nll, seed=seed, resamples=resamples)


def paired_log_ratio(
    nll: np.ndarray, reference: np.ndarray, *, seed: int, resamples: int = 2000
) -> Interval:
    """Log of one model's generative perplexity over another's, text by text with the same keys.

    Args:
      nll, reference: `[texts]`, nats per token, row i of both drawn with the same key.
      seed, resamples: of the bootstrap over texts.
    """
    return bootstrap(mean, nll - reference, seed=seed, resamples=resamples)


@functools.partial(jax.jit, static_argnames=("diffusion", "length", "config"))
def sample_states(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array,
    length: int,
    config: SamplerConfig,
) -> jax.Array:
    """Every state of one text's generation: `[num_steps + 2, length]` int32, MASK included."""
    x_init = prior_sample(1, length, diffusion.mask_id)
    _, states = sample(diffusion, params, key, x_init, config, keep_states=True)
    assert states is not None
    return jnp.asarray(states[:, 0])
