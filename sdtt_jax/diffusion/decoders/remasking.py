"""Decoders that mask revealed tokens again, so that a later call can correct them."""

import dataclasses

import jax
import jax.numpy as jnp

from sdtt_jax.config import one_of, within
from sdtt_jax.diffusion.decoders.base import no_plan, sigma_of_share
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.typing import PerToken, Positions

RULES = ("cap", "rescale", "forward-backward")


@dataclasses.dataclass(frozen=True)
class Remdm:
    """Reverse steps that also mask tokens again, with the right marginals (ReMDM, arXiv 2503.00307)."""

    # "cap" masks a token again with at most this chance in each step, "rescale" with this share of the
    # largest chance that leaves the marginals right, "forward-backward" with this share of the chance that a
    # step of the forward process and one back leave it masked (section 4.3). 0 is the grid.
    eta: float = 0.02
    rule: str = "cap"  # one of `RULES`
    # Share of the range from all masked to nothing masked whose steps stay at the time at which the share
    # `still` is masked, and reveal as much as they mask again; the other steps then mask nothing again
    # (ReMDM-loop, section 4.2, whose loop lies between two times). It also is the share of the steps if
    # all steps of the grid cover equal parts of the range, as on a uniform grid with the log-linear schedule.
    # On a cosine grid, 0.5 makes a loop of 34 of 100 steps.
    loop: float = 0.0
    still: float = 0.1  # share of the tokens that is masked in the loop

    def __post_init__(self) -> None:
        within("[0, 1]", self, "eta")
        within("[0, 1)", self, "loop")
        within("(0, 1)", self, "still")
        one_of(self, rule=RULES)


def remask_chances(
    options: Remdm, masked_t: jax.Array, masked_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """ReMDM's posterior (arXiv 2503.00307, section 3): chances of revealing and of masking again.

    Args:
      options: how much is masked again.
      masked_t, masked_s: `[]` float32, `1 - alpha` at a time t and at the later step s < t. Since everything
        is masked at time 1, it is `calls.still_masked`, the share of what the schedule masks there.

    Returns:
      `reveal = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)` and `sigma`, both `[]` float32; sigma is at
      most `(1 - alpha_s) / alpha_t`, so a position is masked at s as often as without masking again.
    """
    if options.loop > 0:
        (masked_t, _), (masked_s, looping) = (_looped(options, m) for m in (masked_t, masked_s))
    largest = jnp.clip(masked_s / jnp.maximum(1 - masked_t, 1e-30), 0.0, 1.0)
    if options.rule == "cap":
        sigma = jnp.minimum(options.eta, largest)
    elif options.rule == "rescale":
        sigma = options.eta * largest
    else:
        # The chance of being masked from s to t, 1 - alpha_t / alpha_s, and then not revealed from t to s.
        forward = (masked_t - masked_s) / jnp.maximum(1 - masked_s, 1e-30)
        sigma = jnp.minimum(
            options.eta * forward * masked_s / jnp.maximum(masked_t, 1e-30), largest
        )
    if options.loop > 0:
        sigma = jnp.where(looping, sigma, 0.0)
    reveal = (masked_t - masked_s + sigma * (1 - masked_t)) / jnp.maximum(masked_t, 1e-30)
    return jnp.clip(reveal, 0.0, 1.0), sigma


def remdm_plan(
    options: Remdm, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: fixes only the total noise passed to the network at each call."""
    call, sigmas = no_plan(options, share, masked, schedule, times)
    return call, jnp.broadcast_to(network_sigma(options, schedule, times)[:, None], sigmas.shape)


def network_sigma(options: Remdm, schedule: Schedule, times: jax.Array) -> jax.Array:
    """Total noise passed to the network at times of any shape; with a loop, it follows the masked share."""
    if options.loop == 0:
        return schedule.sigma(times)
    share = schedule.move_chance(times) / schedule.move_chance(jnp.float32(1.0))
    return sigma_of_share(schedule, _looped(options, share)[0])


def _looped(options: Remdm, masked: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The share that is masked when a plain grid would have `masked`, and whether that lies in the loop."""
    rest = 1 - options.loop
    begin, end = 1 - rest * (1 - options.still), rest * options.still
    falling = jnp.where(masked > begin, 1 - (1 - masked) / rest, masked / rest)
    looping = (masked <= begin + 1e-6) & (masked >= end - 1e-6)
    return jnp.where(looping, options.still, falling), looping
