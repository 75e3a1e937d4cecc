"""Decoders that decide which call reveals which position before the first network call."""

import dataclasses

import jax

from sdtt_jax.diffusion.calls import grid_calls, still_masked
from sdtt_jax.diffusion.decoders.base import grid_sigmas
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.typing import PerToken, Positions


@dataclasses.dataclass(frozen=True)
class Grid:
    """Reverse steps on a grid of times, each of which reveals a random number of tokens."""


@dataclasses.dataclass(frozen=True)
class FirstHitting:
    """Tokens in a random order, spread as evenly over the calls as whole numbers allow.

    With as many calls as tokens it is the exact reverse process (arXiv 2409.02908, section 4.2).
    """


def grid_plan(
    options: Grid, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: each position at a random step of the grid, as `share` decides."""
    del options
    return grid_calls(share, still_masked(schedule, times)), grid_sigmas(schedule, times, masked)
