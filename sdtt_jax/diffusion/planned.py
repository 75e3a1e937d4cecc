"""Generations that are settled before their first network call: one program for any number of steps.

`sampler.sample` is compiled again for every number of steps, every way to spread positions over them, and
every temperature. Where there is no more to a decoder than its plan, none of them changes what a step does.
So only the plan is made by a program of their own, which compiles in a tenth of the time, and is laid out for
`CAPACITY` steps, and the temperature is a number that the program is given.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.decoders import parse_mode, stop_of
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import (
    Plan,
    SamplerConfig,
    SamplerState,
    first_state,
    plan_generation,
    shown,
    take_step,
)
from sdtt_jax.typing import Key, Params, Tokens

# Steps that a plan is laid out for, of which it takes 4 bytes each for a text.
CAPACITY = 1024


def common_config(config: SamplerConfig) -> SamplerConfig | None:
    """The config that `follow` needs for a generation; None if there is more to it than its plan.

    Args:
      config: of the generation.
    """
    decoder, _ = parse_mode(config.mode)
    more = decoder.pick, decoder.redo, decoder.step, decoder.temperature, stop_of(config.mode)
    if config.num_steps > CAPACITY or any(part is not None for part in more):
        return None
    temperature = config.temperature if config.greedy else 1.0
    return dataclasses.replace(
        config, num_steps=CAPACITY, mode="grid", time_grid="uniform", temperature=temperature
    )


def own_temperature(config: SamplerConfig) -> jax.Array | None:
    """What `follow` divides logits by, `[]` float32; None where that is 1, or no token is drawn."""
    off = config.greedy or config.temperature == 1.0
    return None if off else jnp.float32(config.temperature)


def wide_plan(diffusion: MaskedDiffusion, key: Key, x_init: Tokens, config: SamplerConfig) -> Plan:
    """`sampler.plan_generation`, laid out for `CAPACITY` steps; those that are not taken reveal nothing.

    Args:
      diffusion: the model.
      key: PRNG key.
      x_init: `[batch, length]` int32.
      config: of the generation; `common_config` must have one for it.
    """
    plan = plan_generation(diffusion, key, x_init, config)
    steps, spare = config.num_steps, CAPACITY - config.num_steps
    return dataclasses.replace(
        plan,
        call=jnp.where(plan.call < steps, plan.call, plan.call + spare),
        sigmas=jnp.pad(plan.sigmas, ((0, spare), (0, 0)), mode="edge"),
    )


def follow(
    diffusion: MaskedDiffusion,
    params: Params,
    plan: Plan,
    x_init: Tokens,
    num_steps: jax.Array,
    config: SamplerConfig,
    temperature: jax.Array | None = None,
) -> SamplerState:
    """The generation that a plan has settled: what `sampler.sample` gives for the same key, its final state.

    Args:
      diffusion, params: the model.
      plan: from `wide_plan`.
      x_init: `[batch, length]` int32, as the plan had it.
      num_steps: `[]` int32, reverse steps.
      config: from `common_config`.
      temperature: from `own_temperature`.
    """

    def step(index: jax.Array, state: SamplerState) -> SamplerState:
        # The step after the last, which fills what is still masked, has the number that the config says.
        index = jnp.where(index == num_steps, config.num_steps, index)
        return take_step(diffusion, params, plan, state, index, config, temperature=temperature)

    plan = shown(diffusion, params, plan)
    begin = first_state(diffusion, params, x_init, config)
    return jax.lax.fori_loop(0, num_steps + 1, step, begin)
