"""The FLOPs of one-round distillers, from the sizes of their networks alone."""

from experiments.distillers import COUPLED_IDLM
from experiments.settings import RunConfig
from launch.ahead.networks import Planned
from sdtt_jax.networks import flops

# Averaged over times, half of the tokens are masked (log-linear schedule, t uniform).
MASKED_SHARE = 0.5


def with_full(full_share: float) -> float:
    """The mean share of masked positions if a share `full_share` of the states is fully masked."""
    return full_share + (1 - full_share) * MASKED_SHARE


def begins(name: str, config: RunConfig) -> float:
    """The mean share of masked positions in a student's input."""
    if name in ("mixture", COUPLED_IDLM):
        return with_full(getattr(config, name).full_share)
    # The input is the state before one of n equally likely calls: (1/n + 2/n + … + 1) / n.
    calls = getattr(config, name).num_calls
    return (calls + 1) / (2 * calls)


def loss_share(name: str, config: RunConfig) -> float:
    """The mean share of positions at which a loss applies the head."""
    asked = begins(name, config)
    if name == "alpha":
        return 1 / config.alpha.num_calls  # the share that one call reveals
    if name == "mixture":
        return asked * config.mixture.num_distill_calls / config.mixture.num_calls
    # The fake's loss is at every position that is masked again, the student's at those that it had to fill.
    return MASKED_SHARE * (1 + asked) / 2 if name in ("idlm", COUPLED_IDLM) else asked


def drawn_share(name: str, config: RunConfig) -> float:
    """The share of positions whose tokens are drawn (a mixture's teacher draws few, counted as none)."""
    if name == COUPLED_IDLM:
        return 1 + begins(name, config)  # a whole text is drawn first
    return begins(name, config) if name in ("mmd", "idlm") else 0.0


def trained_calls(name: str, config: RunConfig) -> int:
    """Network calls of a step that have a backward pass."""
    return {"mixture": config.mixture.num_values, "idlm": 2, COUPLED_IDLM: 2}.get(name, 1)


def step_flops(name: str, config: RunConfig, batch: int) -> float:
    """The unavoidable FLOPs of a training step, as `networks.flops` counts them.

    Args:
      name: the distiller's name.
      config: the run's config.
      batch: sequences.
    """
    sizes = Planned(config).denoiser.config
    blocks = flops.block_flops(sizes, batch)
    head = flops.head_flops(sizes, batch * sizes.length)  # at every position
    asked, at_loss = begins(name, config), loss_share(name, config)
    both = flops.FORWARD_AND_BACKWARD
    if name == "alpha":
        return both * (blocks + at_loss * head)
    if name == "mixture":
        # Each value costs a call, and the head for its tokens, its distributions and its weight; the teacher
        # costs its calls, and the head where they reveal.
        values, calls = config.mixture.num_values, config.mixture.num_distill_calls
        each = both * (blocks + 2 * at_loss * head) + (1 - asked) * head
        return values * each + calls * blocks + 2 * at_loss * head
    if name == "mmd":
        # One call serves all completions; features are computed of the real texts and of each completion.
        count = config.mmd.num_groups * config.mmd.group_size
        features = (1 + count) * blocks * config.mmd.layer / sizes.num_layers
        return both * (blocks + at_loss * head) + count * asked * head + features
    # Student and fake are trained, and the teacher makes one call. The student's loss also applies the heads
    # of fake and teacher, the fake's loss the student's.
    student, fake = MASKED_SHARE * asked * head, MASKED_SHARE * head
    calls, drawn = 2 * both + 1 + (name == COUPLED_IDLM), drawn_share(name, config)
    return calls * blocks + (both + 2) * student + (both + 1) * fake + drawn * head
