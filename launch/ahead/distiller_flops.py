"""The FLOPs of one-round distillers, from the sizes of their networks alone."""

from typing import NamedTuple

from experiments.distillers import COUPLED_IDLM
from experiments.settings import RunConfig
from launch.ahead.networks import Planned
from sdtt_jax.networks import flops

# Averaged over times, half of the tokens are masked (log-linear schedule, t uniform).
MASKED_SHARE = 0.5


def with_full(full_share: float) -> float:
    """The mean share of masked positions if a share `full_share` of the states is fully masked."""
    return full_share + (1 - full_share) * MASKED_SHARE


class StepCost(NamedTuple):
    """The cost of a training step, from sizes alone."""

    flops: float  # unavoidable ones, as `networks.flops` counts them, over all devices
    loss_share: float  # mean share of positions at which the loss applies the head
    trained_calls: int = 1  # network calls with a backward pass
    # Share of positions whose tokens are drawn; a teacher's calls draw few, counted as none.
    drawn_share: float = 0.0


def step_cost(name: str, config: RunConfig, batch: int) -> StepCost:
    """The cost of a step of the distiller `name` on `batch` sequences."""
    sizes, stage = Planned(config).denoiser.config, getattr(config, name)
    blocks = flops.block_flops(sizes, batch)
    head = flops.head_flops(sizes, batch * sizes.length)  # at every position
    both = flops.FORWARD_AND_BACKWARD
    # The mean share of masked positions in the student's input.
    if name in ("mixture", COUPLED_IDLM):
        masked = with_full(stage.full_share)
    else:
        # The state before one of n equally likely calls: (1/n + 2/n + … + 1) / n.
        masked = (stage.num_calls + 1) / (2 * stage.num_calls)
    if name == "alpha":
        share = 1 / stage.num_calls  # what one call reveals
        return StepCost(both * (blocks + share * head), share)
    if name == "mixture":
        # Each value costs a call, and the head for its tokens, its distributions and its weight; the teacher
        # costs its calls, and the head where they reveal.
        values, calls = stage.num_values, stage.num_distill_calls
        share = masked * calls / stage.num_calls
        each = both * (blocks + 2 * share * head) + (1 - masked) * head
        return StepCost(values * each + calls * blocks + 2 * share * head, share, values)
    if name == "mmd":
        # One call serves all completions; features are computed of the real texts and of each completion.
        count = stage.num_groups * stage.group_size
        features = (1 + count) * blocks * stage.layer / sizes.num_layers
        needed = both * (blocks + masked * head) + count * masked * head + features
        return StepCost(needed, masked, drawn_share=masked)
    # Student and fake are trained, and the teacher makes one call. The student's loss, at the positions that
    # it had to fill, also applies the heads of fake and teacher; the fake's loss, at every position that is
    # masked again, the student's. A coupled student first draws a whole text.
    student, fake = MASKED_SHARE * masked * head, MASKED_SHARE * head
    calls, drawn = 2 * both + 1, masked
    if name == COUPLED_IDLM:
        calls, drawn = calls + 1, drawn + 1
    needed = calls * blocks + (both + 2) * student + (both + 1) * fake + drawn * head
    return StepCost(needed, MASKED_SHARE * (1 + masked) / 2, 2, drawn)
