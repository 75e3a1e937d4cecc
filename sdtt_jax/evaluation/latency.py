"""How long it takes to write: the sampler against a causal network with its cache, on this machine."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.parallel.placement import place_batch, place_whole


@dataclasses.dataclass(frozen=True)
class Timing:
    """What is timed, and how often."""

    batch: int  # texts
    length: int  # tokens of a text
    repeats: int = 5  # repetitions after one to warm up
    # No repetition but the first begins when they have taken so long together.
    budget_s: float = 60.0


@dataclasses.dataclass(frozen=True)
class Latency:
    """Whole generations of one batch."""

    compile_s: float  # seconds of lowering and compiling (little if a cache had the program)
    seconds: tuple[float, ...]  # of each repetition, after one that warmed up
    nfe: int  # network calls of one repetition

    @property
    def median(self) -> float:
        """Seconds per batch."""
        return statistics.median(self.seconds)

    @property
    def seconds_per_call(self) -> float:
        """Per network call."""
        return self.median / self.nfe


def measure_latency(
    model: Model | CausalModel, key: jax.Array, config: SamplerConfig | None, timing: Timing
) -> Latency:
    """Whole unconditional generations; every repetition draws the same texts.

    Args:
      model: a denoiser, or a causal model, which writes token by token with its key-value cache from one
        token of prompt.
      key: PRNG key.
      config: a denoiser's sampler.
      timing: sizes and repetitions.
    """
    if isinstance(model, CausalModel):
        network = model.network
        rows = jnp.zeros((timing.batch, 1), jnp.int32)

        def write(params: Any, key: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            tokens = generate(network, params, key, prompt=rows, num_tokens=timing.length)
            return tokens, jnp.int32(timing.length)

    else:
        assert config is not None
        diffusion = model.diffusion
        rows = prior_sample(timing.batch, timing.length, model.mask_id)

        def write(params: Any, key: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            state, _ = sample(diffusion, params, key, rows, config)
            return state.x, state.nfe

    if model.mesh is not None:
        key, rows = place_whole(key, model.mesh), place_batch(rows, model.mesh)
    began = time.perf_counter()
    with model.on_mesh():
        program = jax.jit(write).lower(model.params, key, rows).compile()
    compile_s = time.perf_counter() - began
    _, calls = jax.block_until_ready(program(model.params, key, rows))
    seconds: list[float] = []
    while len(seconds) < timing.repeats and (not seconds or sum(seconds) < timing.budget_s):
        began = time.perf_counter()
        jax.block_until_ready(program(model.params, key, rows))
        seconds.append(time.perf_counter() - began)
    return Latency(compile_s, tuple(seconds), int(calls))
