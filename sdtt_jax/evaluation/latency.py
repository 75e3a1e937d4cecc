"""How long it takes to write: the sampler against a causal network with its cache, on this machine."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.parallel.mesh import mesh_if_any, use_mesh
from sdtt_jax.parallel.placement import place_batch, place_whole


@dataclasses.dataclass(frozen=True)
class Latency:
    """Whole generations of one batch.

    Attributes:
      compile_s: seconds of lowering and compiling (little if a cache had the program).
      seconds: of each repetition, after one that warmed up.
      tokens: that one repetition wrote.
      nfe: network calls of one repetition.
    """

    compile_s: float
    seconds: tuple[float, ...]
    tokens: int
    nfe: int

    @property
    def median(self) -> float:
        """Seconds per batch."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of the whole batch."""
        return self.tokens / self.median

    @property
    def seconds_per_call(self) -> float:
        """Per network call."""
        return self.median / self.nfe


def sampler_latency(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array,
    config: SamplerConfig,
    *,
    batch: int,
    length: int,
    repeats: int,
    budget_s: float,
) -> Latency:
    """Unconditional generations; every repetition draws the same texts.

    Args:
      diffusion, params: the model; the parameters may live on a mesh.
      key: PRNG key.
      config: sampler.
      batch: texts.
      length: tokens per text.
      repeats: repetitions after one to warm up.
      budget_s: no repetition but the first begins when they have taken so long together.
    """
    x_init = prior_sample(batch, length, diffusion.mask_id)

    def function(params: Any, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, _ = sample(diffusion, params, key, x, config)
        return state.x, state.nfe

    return _measure(function, params, key, x_init, batch * length, repeats, budget_s)


def causal_latency(
    network: CausalNetwork,
    params: Any,
    key: jax.Array,
    *,
    batch: int,
    length: int,
    repeats: int,
    budget_s: float,
) -> Latency:
    """As `sampler_latency`, token by token with the key-value cache, from one token of prompt."""
    prompt = jnp.zeros((batch, 1), jnp.int32)

    def function(params: Any, key: jax.Array, prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = generate(network, params, key, prompt=prompt, num_tokens=length)
        return tokens, jnp.int32(length)

    return _measure(function, params, key, prompt, batch * length, repeats, budget_s)


def _measure(
    function: Callable[..., Any],
    params: Any,
    key: jax.Array,
    rows: jax.Array,
    tokens: int,
    repeats: int,
    budget_s: float,
) -> Latency:
    mesh = mesh_if_any(params)
    if mesh is not None:
        key, rows = place_whole(key, mesh), place_batch(rows, mesh)

    def compiled() -> Any:
        lowered = jax.jit(function).lower(params, key, rows)
        return lowered.compile()

    began = time.perf_counter()
    if mesh is None:
        program = compiled()
    else:
        with use_mesh(mesh):
            program = compiled()
    compile_s = time.perf_counter() - began
    _, calls = jax.block_until_ready(program(params, key, rows))
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or sum(seconds) < budget_s):
        began = time.perf_counter()
        jax.block_until_ready(program(params, key, rows))
        seconds.append(time.perf_counter() - began)
    return Latency(compile_s, tuple(seconds), tokens, int(calls))
