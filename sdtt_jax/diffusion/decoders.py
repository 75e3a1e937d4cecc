"""Decoders: how a generation chooses which positions a network call reveals, and which it masks again.

A decoder is a set of options and up to three pure functions, one row of `DECODERS`:

* `plan` settles which call reveals which position before the network has said anything. The head then runs at
  the positions of each call alone.
* `pick` chooses among what is masked by what the network says of it. A call stops mattering when
  nothing is masked any more: a generation then makes fewer calls than it may.
* `redo` masks positions again that were revealed, so that a later call can correct them.

`SamplerConfig.mode` names a decoder and its options: "confidence", or
"confidence:score=margin,threshold=0.9".
"""

import ast
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.config import choose, from_mapping, one_of, require, within
from sdtt_jax.diffusion.calls import even_calls, grid_calls, still_masked
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.typing import Key, PerToken, Positions

SCORES = ("probability", "margin", "entropy")
RULES = ("cap", "rescale")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Reverse steps on a grid of times, each of which reveals as many tokens as chance has it."""


@dataclasses.dataclass(frozen=True)
class FirstHitting:
    """Tokens in a random order, spread as evenly over the calls as whole numbers allow.

    With as many calls as tokens it is the exact reverse process (arXiv 2409.02908, section 4.2).
    """


@dataclasses.dataclass(frozen=True)
class Confidence:
    """What the network is surest of comes first (MaskGIT, arXiv 2202.04200; LLaDA, arXiv 2502.09992).

    Attributes:
      score: "probability" of the most probable token, its "margin" over the next one (arXiv 2502.06768), or
        the negative "entropy" of the position.
      threshold: reveal what is at least so sure, and at least one position of each text, however many calls
        that takes; for "entropy" the exponential of the score is compared. 0 spreads the positions evenly.
      order_temperature: of Gumbel noise that is added to the score (log for the first two); 0 is none.
    """

    score: str = "probability"
    threshold: float = 0.0
    order_temperature: float = 0.0

    def __post_init__(self) -> None:
        one_of(self, score=SCORES)
        within("[0, 1]", self, "threshold")
        within("[0, inf)", self, "order_temperature")


@dataclasses.dataclass(frozen=True)
class EntropyBounded:
    """In the order of entropy, as long as what is revealed together can depend on each other little.

    The sum of the entropies less the largest bounds the mutual information of what a call reveals; it stays
    at most `bound` nats (arXiv 2505.24857). At least one position is revealed.
    """

    bound: float = 0.1

    def __post_init__(self) -> None:
        within("[0, inf)", self, "bound")


@dataclasses.dataclass(frozen=True)
class Remdm:
    """Reverse steps that also mask tokens again, with the right marginals (ReMDM, arXiv 2503.00307).

    Attributes:
      eta: "cap" masks a token again with at most this chance in each step, "rescale" with this share of the
        largest chance that leaves the marginals right. 0 is the grid.
      rule: one of the two.
    """

    eta: float = 0.02
    rule: str = "cap"

    def __post_init__(self) -> None:
        within("[0, 1]", self, "eta")
        one_of(self, rule=RULES)


class Pick(NamedTuple):
    """How a call takes some of the masked positions.

    Attributes:
      score: `(options, log_probs [n, vocab]) -> [n]` float32, of masked positions.
      accept: `(options, key, score, due, calls_left) -> [batch, length]` bool: what is taken of the positions
        that are due.
    """

    score: Callable[..., jax.Array]
    accept: Callable[..., jax.Array]


class Decoder(NamedTuple):
    """One row of `DECODERS`; each function takes the options first.

    Attributes:
      options: a frozen dataclass.
      plan: `(options, share, masked, schedule, times) -> (call, sigmas)`: `[batch, length]` int32, the call
        that reveals a position, `num_steps` for none of them; `[num_steps + 1, batch]` float32, the total
        noise that the network is told at each call, and after the last.
      pick: takes some of all that is masked, in place of the plan.
      redo: `(options, masked_t, masked_s) -> (reveal, remask)`, `[]` float32: the chance that a masked
        position is revealed from t to s < t, and that a revealed one is masked again; in place of the plan.
    """

    options: type
    plan: Callable[..., tuple[jax.Array, jax.Array]]
    pick: Pick | None = None
    redo: Callable[..., tuple[jax.Array, jax.Array]] | None = None


def parse_mode(text: str) -> tuple[Decoder, Any]:
    """The decoder and its options that a mode names.

    Args:
      text: a name of `DECODERS`, and after a colon options `name=value` with commas.

    Raises:
      ConfigError: naming what is unknown or out of range.

    Examples:
      >>> parse_mode("confidence:score=margin,threshold=0.9")[1]
      Confidence(score='margin', threshold=0.9, order_temperature=0.0)
    """
    name, colon, rest = str(text).partition(":")
    choose("mode", name, DECODERS)
    fields = {}
    for part in rest.split(",") if colon else ():
        field, equals, value = (word.strip() for word in part.partition("="))
        require(
            bool(field and equals and value), f"mode={text!r}: {part!r} is no option name=value."
        )
        try:
            fields[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[field] = value
    return DECODERS[name], from_mapping(DECODERS[name].options, fields, f"mode {name}")


def remask_chances(
    options: Remdm, masked_t: jax.Array, masked_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """ReMDM's posterior (arXiv 2503.00307, section 3): chances of revealing and of masking again.

    Args:
      options: how much is masked again.
      masked_t, masked_s: `[]` float32, `1 - alpha` at a time t and at the later step s < t.

    Returns:
      `reveal = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)` and `sigma`, both `[]` float32; sigma is at
      most `(1 - alpha_s) / alpha_t`, so that a position is masked at s with the same probability as ever.
    """
    largest = jnp.clip(masked_s / jnp.maximum(1 - masked_t, 1e-30), 0.0, 1.0)
    cap = options.rule == "cap"
    sigma = jnp.minimum(options.eta, largest) if cap else options.eta * largest
    reveal = (masked_t - masked_s + sigma * (1 - masked_t)) / jnp.maximum(masked_t, 1e-30)
    return jnp.clip(reveal, 0.0, 1.0), sigma


def sigma_of_share(schedule: Schedule, share: jax.Array) -> jax.Array:
    """Total noise at the time at which `share` of what is masked at time 1 is so still; any shape."""
    return -jnp.log1p(-schedule.move_chance(jnp.float32(1.0)) * share)


def _grid_plan(
    options: Grid, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del options
    return grid_calls(share, still_masked(schedule, times)), _grid_sigmas(schedule, times, masked)


def _first_hitting_plan(
    options: FirstHitting, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del options
    call, first = even_calls(share, masked, len(times) - 1)
    # A call is made at the time at which its first position is revealed; none is left after the last.
    return call, sigma_of_share(schedule, jnp.pad(first, ((0, 0), (0, 1)))).T


def _no_plan(
    options: Any, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Nothing is settled in advance."""
    del options, share
    return jnp.full(masked.shape, len(times) - 1), _grid_sigmas(schedule, times, masked)


def _grid_sigmas(schedule: Schedule, times: jax.Array, masked: Positions) -> jax.Array:
    return jnp.broadcast_to(schedule.sigma(times)[:, None], (len(times), len(masked)))


def _confidence(options: Confidence, log_probs: jax.Array) -> jax.Array:
    if options.score == "entropy":
        return -_entropy(log_probs)
    if options.score == "margin":
        (first, second) = jnp.exp(jax.lax.top_k(log_probs, 2)[0]).T
        return jnp.log(jnp.maximum(first - second, 1e-30))
    return log_probs.max(axis=-1)


def _accept_confident(
    options: Confidence, key: Key, score: PerToken, due: Positions, calls_left: jax.Array
) -> Positions:
    if options.threshold > 0:
        count = (due & (score >= jnp.log(options.threshold))).sum(axis=-1, keepdims=True)
        count = jnp.maximum(count, 1)
    else:
        count = -(-due.sum(axis=-1, keepdims=True) // calls_left)
    if options.order_temperature > 0:
        noise = jax.random.gumbel(key, score.shape, jnp.float32, mode="high")
        score = score + options.order_temperature * noise
    return due & (_rank(score, due) < count)


def _negative_entropy(options: EntropyBounded, log_probs: jax.Array) -> jax.Array:
    del options
    return -_entropy(log_probs)


def _accept_bounded(
    options: EntropyBounded, key: Key, score: PerToken, due: Positions, calls_left: jax.Array
) -> Positions:
    del key, calls_left
    order = jnp.argsort(jnp.where(due, -score, jnp.inf), axis=-1)
    entropies = jnp.take_along_axis(jnp.where(due, -score, 0.0), order, axis=-1)
    # In rising order the largest is the last one, so the sum without it is that of those before.
    before = jnp.cumsum(entropies, axis=-1) - entropies
    kept = jnp.put_along_axis(
        jnp.zeros_like(due), order, before <= options.bound, axis=-1, inplace=False
    )
    return due & kept


def _rank(score: PerToken, due: Positions) -> jax.Array:
    """Place of each position in the falling order of score; ties in the order of positions."""
    order = jnp.argsort(jnp.where(due, -score, jnp.inf), axis=-1)
    return jnp.argsort(order, axis=-1)


def _entropy(log_probs: jax.Array) -> jax.Array:
    return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)


DECODERS: dict[str, Decoder] = {
    "grid": Decoder(Grid, _grid_plan),
    "first-hitting": Decoder(FirstHitting, _first_hitting_plan),
    "confidence": Decoder(Confidence, _no_plan, Pick(_confidence, _accept_confident)),
    "entropy-bounded": Decoder(EntropyBounded, _no_plan, Pick(_negative_entropy, _accept_bounded)),
    "remdm": Decoder(Remdm, _no_plan, redo=remask_chances),
}
