"""One compiled program for all generations whose decoder only follows a plan, whatever the steps.

`sampler.sample` is compiled again for every number of steps, every way to spread positions over them, and
every temperature. For decoders that only follow a plan, none of these changes a step itself. So the plan,
padded to `CAPACITY` steps, and the temperatures are arguments of one program here; a separate program, which
compiles in a tenth of the time, makes the plan.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.calls import cooled
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import (
    Plan,
    SamplerConfig,
    SamplerState,
    first_state,
    plan_generation,
    take_step,
    with_prepared_noise,
)
from sdtt_jax.typing import Key, Params, Tokens

# Steps that a plan is padded to; each takes 4 bytes for every text.
CAPACITY = 1024


def common_config(config: SamplerConfig) -> SamplerConfig | None:
    """The config for `follow`; None for more than `CAPACITY` steps, or if a plan is not all that decides.

    Args:
      config: of the generation.
    """
    if config.num_steps > CAPACITY or not parse_mode(config.mode).only_plans:
        return None
    temperature = config.temperature if config.greedy else 1.0
    return dataclasses.replace(
        config,
        num_steps=CAPACITY,
        mode="grid",
        time_grid="uniform",
        temperature=temperature,
        cooling=0.0,
    )


def own_temperatures(config: SamplerConfig) -> jax.Array | None:
    """The `Plan.temperatures` of `follow`: `[CAPACITY + 1]` float32; None if none is drawn.

    Also where that is 1 throughout: dividing takes less than compiling a program without it.
    """
    if config.greedy:
        return None
    temperatures = cooled(config.num_steps, config.temperature, config.cooling)
    spare = CAPACITY - config.num_steps
    return jax.device_put(np.pad(temperatures, (0, spare), constant_values=1))


@dataclasses.dataclass(frozen=True)
class Outline:
    """All that a plan depends on of a network."""

    mask_id: int
    noise_kind: str | None


def outline(diffusion: MaskedDiffusion) -> MaskedDiffusion:
    """A static argument for what makes a plan, so that models of different networks share one program."""
    network: Any = Outline(diffusion.mask_id, diffusion.noise_kind)
    return MaskedDiffusion(network, diffusion.schedule)


def spread_of(config: SamplerConfig) -> SamplerConfig:
    """All that a plan depends on of a config: how tokens are drawn makes no difference to it."""
    return SamplerConfig(config.num_steps, config.time_grid, mode=config.mode)


def wide_plan(diffusion: MaskedDiffusion, key: Key, x_init: Tokens, config: SamplerConfig) -> Plan:
    """`sampler.plan_generation`, padded to `CAPACITY` steps; the steps that are added reveal nothing.

    Args:
      diffusion: the model, or its `outline`.
      key: PRNG key.
      x_init: `[batch, length]` int32.
      config: of the generation; one for which `common_config` is not None.
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
) -> SamplerState:
    """Carries out a plan: the final state that `sampler.sample` returns for the same key.

    Args:
      diffusion, params: the model.
      plan: from `wide_plan`, with the temperatures of `own_temperatures`.
      x_init: `[batch, length]` int32, the same as for the plan.
      num_steps: `[]` int32, reverse steps.
      config: from `common_config`.
    """

    def step(index: jax.Array, state: SamplerState) -> SamplerState:
        # The step after the last, which fills what is still masked, has the index `config.num_steps`.
        index = jnp.where(index == num_steps, config.num_steps, index)
        return take_step(diffusion, params, plan, state, index, config)

    plan = with_prepared_noise(diffusion, params, plan)
    begin = first_state(diffusion, params, x_init, config)
    return jax.lax.fori_loop(0, num_steps + 1, step, begin)
