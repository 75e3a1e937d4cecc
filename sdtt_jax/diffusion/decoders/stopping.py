"""Stops texts before the calls are used up: any one of several predicates stops a text."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.config import INT32, choose, number, require, whole, within
from sdtt_jax.diffusion.decoders.base import Pick, entropy
from sdtt_jax.ops.categorical import SMALLEST
from sdtt_jax.ops.sequences import ends_of_texts
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import PerToken, Positions, Tokens

# Predicates by name, and the type of the number after the colon; None where there is no number.
PREDICATES = {"filled": None, "stable": int, "entropy": float, "eos": int}
# Those whose number must be above 0, also in float32.
POSITIVE = ("stable", "entropy")
# The field of the number that may follow the first one and a slash.
SECOND = {"eos": "bos"}


@dataclasses.dataclass(frozen=True)
class Stop:
    """What ends a text, from `stop=` of a mode: predicates with "+" between them."""

    # "filled": nothing is masked; decoders that correct themselves then stop doing so.
    filled: bool = False
    # "stable:2": nothing is masked, and this many steps in a row changed nothing; 0 is off.
    stable: int = 0
    # "entropy:0.5": the entropies that a call finds at masked positions have a sum below this many nats; that
    # call then reveals all of them. 0 is off.
    entropy: float = 0.0
    # "eos:1": this token was written and nothing before it is masked; what follows becomes EOS too. -1 is
    # off. `ops.sequences.ends_of_texts` defines which EOS end a text.
    eos: int = -1
    # "eos:1/0": BOS, where that is another token than EOS; a text may begin with both. -1: it is EOS.
    bos: int = -1

    def __post_init__(self) -> None:
        whole(0, self, "stable")
        within("[0, inf)", self, "entropy")
        whole(-1, self, "eos", "bos")


@flax.struct.dataclass
class Watch:
    """Which texts have stopped, and for how long each has not changed."""

    stopped: jax.Array  # `[batch]` bool
    steady: jax.Array  # `[batch]` int32, steps without a change since nothing is masked


def parse_stop(text: str, *, picks: bool) -> Stop:
    """The predicates of `stop=`.

    Args:
      text: as in `Stop`, "stable:2+eos:1".
      picks: whether the decoder reads all masked positions at each call, which "entropy" needs.

    Raises:
      ConfigError: naming the predicate that is unknown, out of range or cannot be served.
    """
    fields: dict[str, bool | int | float] = {}
    for part in text.split("+"):
        name, _, value = part.strip().partition(":")
        choose("stop", name, PREDICATES)
        require(
            name not in fields,
            f"stop={text} has {name!r} twice; give it once.",
        )
        kind, second = PREDICATES[name], SECOND.get(name)
        given = value.split("/", 1) if second else [value]
        found: list[bool | int | float]
        try:
            found = [True] if kind is None else [number(kind, each) for each in given]
        except ValueError:
            found = [-2]
        fields |= zip((name, second or ""), found, strict=False)
        require(
            min(found) >= 0 and (kind is None) == (not value),
            f"stop={text}: {part!r} must be {name!r}"
            + (" alone." if kind is None else " with a number, as in 'stable:2'."),
        )
        require(
            name not in POSITIVE or min(found) >= SMALLEST,
            f"stop={text}: {part!r} would never stop a text; take a number above 0, or leave {name!r} out.",
        )
    require(
        picks or "entropy" not in fields,
        f"stop={text}: 'entropy' is for decoders that read every masked position at each call: confidence "
        "and entropy-bounded.",
    )
    return Stop(**fields)  # type: ignore[arg-type]


def begin_watch(x: Tokens, mask_id: int) -> Watch:
    """The first `Watch`: only texts in which nothing is masked have stopped."""
    return Watch(~(x == mask_id).any(axis=-1), jnp.zeros(len(x), jnp.int32))


def until_stopped(step: Callable[..., Any], state: Any, num_steps: int) -> Any:
    """Runs steps 0 … num_steps, until all texts have stopped.

    Args:
      step: `(state, index) -> state`, of states with a `watch`.
      state: the first.
      num_steps: steps.
    """

    def body(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        return step(*carry), carry[1] + 1

    def going(carry: tuple[Any, jax.Array]) -> jax.Array:
        return (carry[1] <= num_steps) & ~carry[0].watch.stopped.all()

    return jax.lax.while_loop(going, body, vary_alike(state, jnp.int32(0)))[0]


def updated_watch(
    stop: Stop, mask_id: int, watch: Watch, before: Tokens, after: Tokens, free: Positions
) -> Watch:
    """Updates `watch` after a step; a stopped text stays stopped.

    Args:
      stop: the predicates.
      mask_id: id of MASK.
      watch: the one before the step.
      before, after: `[batch, length]` int32, around the step.
      free: `[batch, length]` bool, positions that were not given.
    """
    filled = ~(after == mask_id).any(axis=-1)
    steady = jnp.where(filled & (before == after).all(axis=-1), watch.steady + 1, 0)
    stopped = watch.stopped
    if stop.filled or stop.entropy > 0:
        stopped |= filled
    if stop.stable > 0:
        stopped |= steady >= min(stop.stable, INT32 - 1)
    if stop.eos >= 0:
        stopped |= _end(stop, mask_id, after, free).any(axis=-1)
    return Watch(stopped, steady)


def fill_with_eos(stop: Stop, mask_id: int, x: Tokens, free: Positions) -> Tokens:
    """`x` with EOS at all positions after the EOS that ended a text; of those, none but EOS was given."""
    if stop.eos < 0:
        return x
    ended = jnp.cumsum(_end(stop, mask_id, x, free), axis=-1) > 0
    return jnp.where(ended, stop.eos, x)


def _end(stop: Stop, mask_id: int, x: Tokens, free: Positions) -> Positions:
    """Generated EOS tokens that end a text: no MASK precedes them."""
    known = jnp.cumsum(x == mask_id, axis=-1) == 0
    return free & known & ends_of_texts(x, free, stop.bos, stop.eos)


def finishing(pick: Pick, bound: float) -> Pick:
    """`pick`, but taking all due positions of a text once their entropies sum to less than `bound` nats.

    Args:
      pick: what a call takes; its score has no columns.
      bound: nats.
    """

    def score(log_probs: jax.Array) -> jax.Array:
        return jnp.stack([pick.score(log_probs), entropy(log_probs)], axis=-1)

    def accept(score: PerToken, due: Positions) -> Positions:
        left = jnp.where(due, score[..., 1], 0.0).sum(axis=-1, keepdims=True)
        return pick.accept(score[..., 0], due) | (due & (left < bound))

    return Pick(score, accept, (2,))
