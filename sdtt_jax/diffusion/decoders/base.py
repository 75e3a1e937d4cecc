"""What decoders are made of: the interface of a row of `DECODERS`, and what several decoders use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.calls import even_calls
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.ops.categorical import NEG_INFINITY, Filters
from sdtt_jax.ops.sequences import mean_counted
from sdtt_jax.typing import LogProbs, Params, PerSequence, PerToken, Positions, Tokens

# What a decoder keeps from step to step: a tree of arrays, or None.
Memory = Any


class Pick(NamedTuple):
    """How one call takes some of the masked positions."""

    # `log_probs [n, vocab] -> [n, *columns]` float32, of masked positions.
    score: Callable[[LogProbs], jax.Array]
    # `(score [batch, length, *columns], due) -> [batch, length]` bool: which of the due positions are taken.
    accept: Callable[[jax.Array, Positions], Positions]
    columns: tuple[int, ...] = ()  # shape of the score of one position


@flax.struct.dataclass
class Helper:
    """The second model of a decoder."""

    params: Params  # its parameters
    # A denoiser, or a causal network with `hidden(params, tokens)`, `logits` and `head_params`.
    network: Any = flax.struct.field(pytree_node=False)
    # The token before the first one, for a causal network; None for a denoiser.
    bos_id: int | None = flax.struct.field(pytree_node=False, default=None)
    # n, if this is a causal network of every n-th token; 0: not known.
    every: int = flax.struct.field(pytree_node=False, default=0)


class Scene(NamedTuple):
    """What stays the same during a generation: the model, the helper, the filters and the times."""

    # diffusion, params: the model.
    diffusion: MaskedDiffusion
    params: Params
    helper: Helper | None  # the second model; None where the decoder needs none
    filters: Filters  # of the token distribution
    times: jax.Array  # `[num_steps + 1]` float32, of the grid

    @property
    def num_steps(self) -> int:
        """Calls that may be made."""
        return len(self.times) - 1

    @property
    def other(self) -> Helper:
        """The helper of a decoder that needs one."""
        assert self.helper is not None  # checked by `serving.begin`
        return self.helper


class Now(NamedTuple):
    """The state of a generation, as a decoder's own step sees it."""

    x: Tokens  # `[batch, length]` int32
    due: Positions  # `[batch, length]` bool, what the plan reveals at this call
    free: Positions  # `[batch, length]` bool, what was not given at the start
    call: jax.Array  # `[]` int32, number of the step
    # From the previous steps; None where a decoder keeps nothing.
    memory: Memory = None

    def sigma(self, scene: Scene) -> jax.Array:
        """Total noise for the masked share of `x`, as in `sigma_of_state`: `[batch]` float32."""
        return sigma_of_state(scene.diffusion, self.x)


def _nothing(*_: Any) -> None:
    """Checks nothing, or remembers nothing."""


class Decoder(NamedTuple):
    """One row of `DECODERS`; each function takes the options first."""

    options: type  # a frozen dataclass
    # `(options, share, masked, schedule, times) -> (call, sigmas)`: `[batch, length]` int32, the call that
    # reveals a position, `num_steps` if none does; `[num_steps + 1, batch]` float32, the total noise passed
    # to the network at each call, and after the last.
    plan: Callable[..., tuple[jax.Array, jax.Array]]
    # `(options, key, calls_left) -> Pick`: chooses among all masked positions, in place of the plan. The
    # calls left, `[]` int32, include this one.
    pick: Callable[..., Pick] | None = None
    # `(options, masked_t, masked_s) -> (reveal, remask)`, `[]` float32: the chance that a masked position is
    # revealed from t to s < t, where these shares are masked of what is masked at time 1, and that a revealed
    # one is masked again; in place of the plan.
    redo: Callable[..., tuple[jax.Array, jax.Array]] | None = None
    # `(options, scene, key, now) -> (x, calls, memory)`: the decoder's own calls; the text `[batch, length]`
    # and the number of calls `[]`, int32. Replaces revealing what the plan has for this call.
    step: Callable[..., tuple[Tokens, jax.Array, Memory]] | None = None
    # `(options, scene, x) -> memory` before the first step.
    begin: Callable[..., Memory] = _nothing
    # Whether the decoder uses the grid's times. Otherwise `plan` reads only their number, and the noise that
    # the network gets follows from the share that is masked.
    timed: bool = False
    # Whether steps are skipped once nothing is masked.
    finishes: bool = True
    # `(options, network, num_steps, length)` raises `ConfigError` if they do not suit the decoder.
    check: Callable[..., None] = _nothing
    # Kinds of helper that it accepts, "causal" or "denoiser"; empty if it needs no helper.
    helper: tuple[str, ...] = ()
    # `(options, call [] int32) -> [] float32`, divides the logits of a call in addition to the sampler's own
    # temperature; or None.
    temperature: Callable[..., jax.Array | None] | None = None


def sigma_of_state(diffusion: MaskedDiffusion, x: Tokens) -> PerSequence:
    """Total noise at the time at which the expected masked share equals that of `x`: `[batch]` float32.

    Only positions that may be masked count: padding, and the prompts of a model that was trained on prompts,
    are never masked in training.
    """
    masked, free = x == diffusion.mask_id, diffusion.free
    counted = (masked if free is None else masked & free).astype(jnp.float32)
    return sigma_of_share(diffusion.schedule, mean_counted(counted, free))


def sigma_of_share(schedule: Schedule, share: jax.Array) -> jax.Array:
    """Total noise at the time at which `share` of what is masked at time 1 is still masked; any shape.

    At most the noise at time 1. A schedule whose noise there exceeds 17 masks everything, as far as float32
    can tell, and the logarithm by itself would be infinite.
    """
    end = jnp.float32(1.0)
    return jnp.minimum(-jnp.log1p(-schedule.move_chance(end) * share), schedule.sigma(end))


def first_hitting_plan(
    options: Any, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: a random order, spread evenly over the calls."""
    del options
    call, first = even_calls(share, masked, len(times) - 1)
    # A call is made at the time at which its first position is revealed; nothing is masked after the last.
    return call, sigma_of_share(schedule, jnp.pad(first, ((0, 0), (0, 1)))).T


def no_plan(
    options: Any, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: no position is assigned to a call in advance."""
    del options, share
    return jnp.full(masked.shape, len(times) - 1), grid_sigmas(schedule, times, masked)


def grid_sigmas(schedule: Schedule, times: jax.Array, masked: Positions) -> jax.Array:
    """Total noise at each of the times, for every sequence: `[times, batch]` float32."""
    return jnp.broadcast_to(schedule.sigma(times)[:, None], (len(times), len(masked)))


def entropy(log_probs: jax.Array) -> jax.Array:
    """The entropy of each distribution `[..., vocab]`, nats; an entry of -inf adds nothing."""
    return -(jnp.exp(log_probs) * jnp.maximum(log_probs, NEG_INFINITY)).sum(axis=-1)
