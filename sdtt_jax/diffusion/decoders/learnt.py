"""A schedule that was learnt for a number of calls: how many tokens each reveals, and its temperature."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import inside, number, require
from sdtt_jax.diffusion.calls import dealt_calls
from sdtt_jax.diffusion.decoders.base import sigma_of_share
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.typing import PerToken, Positions

# The file in a checkpoint's folder: options of `Learnt`, or counts alone, by number of calls.
SCHEDULES = "schedules.json"


@dataclasses.dataclass(frozen=True)
class Learnt:
    """Tokens in a random order, a learnt number of them at each call."""

    # How many tokens of a whole text each call reveals, "1/2/5/8"; the same shares of a text with fewer
    # masked tokens. Empty: the counts that `experiments.evaluate --suite=schedule` stored with the
    # checkpoint for this number of calls (`evaluation.schedules` says what they are the best of).
    counts: str = ""
    # Divides the logits of each call, "1/0.9/0.8", or of all calls, "0.9", in addition to the sampler's own
    # temperature. Empty: the temperatures stored with the counts, or else 1.
    temperatures: str = ""

    def __post_init__(self) -> None:
        self.tokens  # noqa: B018
        self.scales  # noqa: B018

    @property
    def tokens(self) -> tuple[int, ...]:
        """The counts as numbers."""
        parts = _parts(self.counts)
        if not all(part.isdecimal() for part in parts):
            raise ConfigError(
                f"counts={self.counts!r} must be whole numbers with '/' between them, as in '1/2/5/8'."
            )
        return tuple(int(part) for part in parts)

    @property
    def scales(self) -> tuple[float, ...]:
        """The temperatures as numbers; empty: 1 at every call."""
        try:
            scales = tuple(number(float, part) for part in _parts(self.temperatures))
        except ValueError:
            scales = (0.0,)
        require(
            all(inside("[1.2e-38, 3.4e38]", scale) for scale in scales),
            f"temperatures={self.temperatures!r} must be positive numbers with '/' between them, as in "
            "'1/0.9', and from 1.2e-38 to 3.4e38.",
        )
        return scales

    def scale(self, call: int) -> float:
        """The temperature of a call; `scales` must not be empty."""
        return self.scales[call if len(self.scales) > 1 else 0]


def _parts(text: str) -> list[str]:
    """What stands between '/', which may also end the text."""
    return text.removesuffix("/").split("/") if text else []


def numbers_text(numbers: Sequence[float]) -> str:
    """Counts, exactly, or temperatures, in four digits, as the text of an option of `Learnt`."""
    return "/".join(str(n) if isinstance(n, Integral) else f"{n:.4g}" for n in numbers)


def call_temperature(options: Learnt, call: jax.Array) -> jax.Array | None:
    """`Decoder.temperature`: the temperature of the call, and 1 after the last; None if there are none."""
    if not options.scales:
        return None
    scales = [*map(options.scale, range(len(options.tokens))), 1.0]
    return jnp.array(scales, jnp.float32)[call]


def learnt_plan(
    options: Learnt, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: a random order, dealt out as the counts say."""
    del times
    call, first = dealt_calls(share, masked, options.tokens)
    return call, sigma_of_share(schedule, jnp.pad(first, ((0, 0), (0, 1)))).T


def check_learnt(options: Learnt, network: Any, num_steps: int, length: int) -> None:
    """`Decoder.check`: a count for each call, adding up to a text, and temperatures for all calls or none."""
    del network
    tokens = options.tokens
    require(
        len(options.scales) in (0, 1, num_steps),
        f"mode=learnt: temperatures={options.temperatures!r} gives {len(options.scales)} values for "
        f"{num_steps} calls; give one per call, or one for all.",
    )
    require(
        len(tokens) == num_steps and sum(tokens) == length,
        f"mode=learnt: counts={options.counts!r} describes {len(tokens)} calls and {sum(tokens)} tokens, but "
        f"this generation has {num_steps} calls and {length} tokens; learn counts with experiments.evaluate "
        "--suite=schedule.",
    )
