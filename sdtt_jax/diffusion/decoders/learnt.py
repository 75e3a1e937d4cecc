"""A schedule that was learnt for a number of calls: how many tokens each of them reveals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import require
from sdtt_jax.diffusion.calls import dealt_calls
from sdtt_jax.diffusion.decoders.base import sigma_of_share
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.typing import PerToken, Positions

# The file beside a checkpoint's parameters: counts by number of calls.
SCHEDULES = "schedules.json"


@dataclasses.dataclass(frozen=True)
class Learnt:
    """Tokens in a random order, so many at each call.

    Attributes:
      counts: tokens of a whole text that each call reveals, "1/2/5/8"; of a text with fewer masked tokens the
        same shares. Empty: what `experiments.evaluate --suite=schedule` has stored beside the checkpoint for
        this number of calls (`evaluation.schedules` says what it is the best of).
    """

    counts: str = ""

    def __post_init__(self) -> None:
        self.tokens  # noqa: B018

    @property
    def tokens(self) -> tuple[int, ...]:
        """The counts as numbers."""
        parts = [part for part in self.counts.split("/") if part]
        if not all(part.isdecimal() for part in parts):
            raise ConfigError(
                f"counts={self.counts!r} must be whole numbers with '/' between them, as in '1/2/5/8'."
            )
        return tuple(int(part) for part in parts)


def counts_text(counts: tuple[int, ...]) -> str:
    """`Learnt.counts` of such numbers; the last "/" keeps a single one from being read as a number."""
    return "/".join(str(count) for count in counts) + "/"


def learnt_plan(
    options: Learnt, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: a random order, dealt out as the counts say."""
    del times
    call, first = dealt_calls(share, masked, options.tokens)
    return call, sigma_of_share(schedule, jnp.pad(first, ((0, 0), (0, 1)))).T


def check_learnt(options: Learnt, network: Any, num_steps: int, length: int) -> None:
    """`Decoder.check`: a count for each call, for all tokens."""
    del network
    tokens = options.tokens
    require(
        len(tokens) == num_steps and sum(tokens) == length,
        f"mode=learnt: counts={options.counts!r} are {len(tokens)} calls for {sum(tokens)} tokens, where "
        f"there are {num_steps} for {length}; learn them with experiments.evaluate --suite=schedule.",
    )
