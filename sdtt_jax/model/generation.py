"""Compiled generations; decoders that only follow a plan share one program (`diffusion.shared_program`)."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.decoders.serving import check_unasked
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import Plan, SamplerConfig, SamplerState, first_state, sample
from sdtt_jax.diffusion.shared_program import (
    common_config,
    follow,
    outline,
    own_temperatures,
    spread_of,
    wide_plan,
)
from sdtt_jax.networks.base import rounded_once
from sdtt_jax.ops.sequences import Sequences, arrange
from sdtt_jax.typing import Key, Params, Tokens


def generate(
    diffusion: MaskedDiffusion,
    params: Params,
    key: Key,
    x_init: Tokens,
    config: SamplerConfig,
    sequences: Sequences | None,
    helper: Helper | None,
) -> SamplerState:
    """Runs `sampler.sample`, compiled, and returns its final state.

    Args:
      diffusion, params, key, x_init, config, helper: as for `sample`.
      sequences: how the model's sequences are packed; None: each is one text.

    Raises:
      ConfigError: the model, or its helper, cannot do what the decoder asks of it.
    """
    common = common_config(config)
    if common is None:
        return _sampled(diffusion, params, key, x_init, config, sequences, helper)
    check_unasked(parse_mode(config.mode), helper)
    plan = _wide_plan(outline(diffusion), key, x_init, spread_of(config))
    plan = dataclasses.replace(plan, temperatures=own_temperatures(config))
    steps = jax.device_put(np.int32(config.num_steps))
    return _followed(diffusion, params, plan, x_init, steps, common, sequences)


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "sequences"))
def begin(
    diffusion: MaskedDiffusion,
    params: Params,
    x_init: Tokens,
    config: SamplerConfig,
    sequences: Sequences | None,
    helper: Helper | None,
) -> SamplerState:
    """The state before the first step; arguments as for `generate`."""
    model = diffusion.within(arrange(x_init, sequences))
    return first_state(model, params, x_init, config, helper)


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "sequences"))
def _sampled(
    diffusion: MaskedDiffusion,
    params: Params,
    key: Key,
    x_init: Tokens,
    config: SamplerConfig,
    sequences: Sequences | None,
    helper: Helper | None,
) -> SamplerState:
    model, params = _ready(diffusion, params, x_init, sequences)
    state, _ = sample(model, params, key, x_init, config, helper=helper)
    return state


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "sequences"))
def _followed(
    diffusion: MaskedDiffusion,
    params: Params,
    plan: Plan,
    x_init: Tokens,
    num_steps: jax.Array,
    config: SamplerConfig,
    sequences: Sequences | None,
) -> SamplerState:
    model, params = _ready(diffusion, params, x_init, sequences)
    return follow(model, params, plan, x_init, num_steps, config)


def _ready(
    diffusion: MaskedDiffusion, params: Params, x_init: Tokens, sequences: Sequences | None
) -> tuple[MaskedDiffusion, Params]:
    """The model for one batch, and its parameters, rounded once for all calls."""
    network: Any = diffusion.denoiser
    return diffusion.within(arrange(x_init, sequences)), rounded_once(network.config, params)


_wide_plan = jax.jit(wide_plan, static_argnames=("diffusion", "config"))
