"""The law of what a model writes on an enumerated world, counted over many samples.

This is for laws that cannot be summed: a noise-coupled student's is an integral over its noise, (V + 1) L
numbers, and that of a decoder that remembers has one term for each history. The plug-in estimate of KL is too
large, and that of entropy too small, by about (sequences seen) / (2 samples); extrapolation from the two
halves of the samples takes this out. For KL(chain || samples), half a sample is added to every sequence,
because one that was never seen would make it infinite. Total variation is left as it is, an upper bound.
Samples of the language itself would not have zeros. Of 131,072 in a world of 6 tokens and length 6, the three
were 0.022, 0.137 and 0.124; in one of 5 tokens and length 5, the last two were 0.010 and 0.031.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.keys import purpose_key
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.world import Array, World
from sdtt_jax.typing import Key, Params

_SAMPLES_PER_CALL = 2**14
COUNTED = (
    "† counted over samples: measures near 0 are too large, and KL(samples ‖ chain) may be below 0"
)


class Draws(NamedTuple):
    """How many sequences a law is counted over, and the seed of their draws."""

    number: int = 2**17
    seed: int = 0


def sampled_measures(
    truth: Truth,
    diffusion: MaskedDiffusion,
    params: Params,
    calls: Sequence[int],
    draws: Draws,
    temperature: float = 0.0,
    mode: str = "grid",
) -> dict[str, dict[str, float]]:
    """Both KLs, total variation and entropy of what a model writes, by number of calls (a string).

    With `samples`, the number that they were counted over.

    Args:
      calls: numbers of network calls.
      draws: how many samples, and their seed.
      temperature: 0 takes what the noise determines, 1 draws from the student's own distribution.
      mode: how positions are assigned to calls, as in `SamplerConfig`.
    """
    measures = {}
    for number in calls:
        sampler = SamplerConfig(number, temperature=temperature, mode=mode)
        key = purpose_key(draws.seed, "exact-coupled-samples", number)
        turns = 2 * -(-draws.number // (2 * _SAMPLES_PER_CALL))
        keys = (jax.random.fold_in(key, turn) for turn in range(turns))
        counts = np.array([_counts(diffusion, params, k, sampler, truth.world) for k in keys])
        halves = [counts[half::2].sum(axis=0) for half in range(2)]
        measures[str(number)] = _measures_of_counts(halves, truth) | {"samples": int(counts.sum())}
    return measures


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "length"))
def mean_calls(
    diffusion: MaskedDiffusion, params: Params, key: Key, config: SamplerConfig, length: int
) -> jax.Array:
    """Mean network calls per text, over many texts that are written one by one: `[]` float32."""
    x_init = prior_sample(1, length, diffusion.mask_id)

    def calls(key: Key) -> jax.Array:
        return sample(diffusion, params, key, x_init, config)[0].nfe

    return jax.vmap(calls)(jax.random.split(key, _SAMPLES_PER_CALL)).mean()


def _measures_of_counts(halves: Sequence[Array], truth: Truth) -> dict[str, float]:
    def measured(counts: Array) -> dict[str, float]:
        plain = truth.measures_of(counts / counts.sum())
        smooth = (counts + 0.5) / (counts + 0.5).sum()
        return plain | {"kl_reverse": truth.measures_of(smooth)["kl_reverse"]}

    whole, parts = measured(halves[0] + halves[1]), [measured(half) for half in halves]
    for name in ("kl", "entropy"):
        whole[name] = 2 * whole[name] - sum(part[name] for part in parts) / 2
    return whole


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "world"))
def _counts(
    diffusion: MaskedDiffusion, params: Params, key: Key, config: SamplerConfig, world: World
) -> jax.Array:
    """How often each finished sequence was written: `[V^L]` int32, ordered as `finished_states`."""
    x_init = prior_sample(_SAMPLES_PER_CALL, world.length, world.vocab_size)
    state, _ = sample(diffusion, params, key, x_init, config)
    place = jnp.asarray(world.vocab_size ** np.arange(world.length - 1, -1, -1), jnp.int32)
    return jnp.bincount((state.x * place).sum(axis=-1), length=world.vocab_size**world.length)
