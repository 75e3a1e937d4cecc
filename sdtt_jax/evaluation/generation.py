"""Texts from a model, and what they are worth: generative perplexity, always with entropy beside it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.masking import DenoiserLike
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.evaluation.batches import batch_rows, mesh_of
from sdtt_jax.keys import at_step
from sdtt_jax.processes import to_host
from sdtt_jax.training import sharding as sh


class Interval(NamedTuple):
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _sample_batch(
    denoiser: DenoiserLike,
    params: Any,
    key: jax.Array,
    batch: int,
    length: int,
    schedule: Schedule,
    config: SamplerConfig,
) -> tuple[jax.Array, jax.Array]:
    state, _ = sample(
        denoiser, params, key, prior_sample(batch, length, denoiser.mask_id), schedule, config
    )
    return state.x, state.nfe


def sample_texts(
    denoiser: DenoiserLike,
    params: Any,
    key: jax.Array,
    *,
    num_texts: int,
    length: int,
    batch_size: int,
    schedule: Schedule,
    config: SamplerConfig,
) -> tuple[np.ndarray, float]:
    """Unconditional texts, in batches.

    Args:
      denoiser, params: the network; the parameters may live on a mesh.
      key: PRNG key; batch i uses `fold_in(key, i)`, so two models with one key share all noise.
      num_texts: how many.
      length: tokens per text.
      batch_size: texts at once.
      schedule: noise schedule.
      config: sampler.

    Returns:
      Tokens `[num_texts, length]` int32, and the mean number of network calls of a batch.
    """
    size = batch_rows(params, batch_size)
    mesh = mesh_of(params)
    texts, calls = [], []
    for index in range(-(-num_texts // size)):
        arguments = (denoiser, params, at_step(key, index), size, length, schedule, config)
        if mesh is None:
            x, nfe = _sample_batch(*arguments)
        else:
            with sh.use_mesh(mesh):
                x, nfe = _sample_batch(*arguments)
        texts.append(to_host(x))
        calls.append(int(nfe))
    return np.concatenate(texts)[:num_texts], float(np.mean(calls))


def unigram_entropy(tokens: np.ndarray) -> np.ndarray:
    """Entropy of the tokens within each text: `[texts]` float64, nats.

    The field's guard against repetition: a text of one repeated token has 0. Args: `[texts, length]`.
    """
    ordered = np.sort(tokens, axis=1)
    entropies = []
    for row in ordered:
        counts = np.diff(np.flatnonzero(np.concatenate([[True], row[1:] != row[:-1], [True]])))
        share = counts / len(row)
        entropies.append(-(share * np.log(share)).sum())
    return np.array(entropies)


def perplexity(nll: np.ndarray, *, seed: int, resamples: int = 2000) -> Interval:
    """Perplexity over all tokens with a bootstrap over texts; `nll: [texts]`, nats per token."""
    means = _bootstrap_means(nll, seed, resamples)
    low, high = np.percentile(np.exp(means), [2.5, 97.5])
    return Interval(float(np.exp(nll.mean())), float(low), float(high))


def paired_log_ratio(
    nll: np.ndarray, reference: np.ndarray, *, seed: int, resamples: int = 2000
) -> Interval:
    """Log of one model's generative perplexity over another's, text by text with the same keys.

    Args:
      nll, reference: `[texts]`, nats per token, row i of both drawn with the same key.
      seed, resamples: of the bootstrap over texts.
    """
    difference = nll - reference
    low, high = np.percentile(_bootstrap_means(difference, seed, resamples), [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))


def _bootstrap_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), size=(resamples, len(values)))
    return np.asarray(values)[picks].mean(axis=1)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def sample_states(
    denoiser: DenoiserLike,
    params: Any,
    key: jax.Array,
    length: int,
    schedule: Schedule,
    config: SamplerConfig,
) -> jax.Array:
    """Every state of one text's generation: `[num_steps + 2, length]` int32, MASK included."""
    x_init = prior_sample(1, length, denoiser.mask_id)
    _, states = sample(denoiser, params, key, x_init, schedule, config, keep_states=True)
    assert states is not None
    return jnp.asarray(states[:, 0])
