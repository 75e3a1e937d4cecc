"""The teacher's trajectory from x_t, and the target that each masked position gets from it.

A position's target is the teacher's distribution at the step that revealed it; positions that are never
revealed take the last step's (SDTT, arXiv 2410.21035, algorithm 1). Only the teacher's final hidden state is
kept, `[batch, length, embed]`: the distribution, `[batch, length, vocab]`, is 65 times larger at 50k tokens
and 768 features, and one application of the head away.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.config import instance, require
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS
from sdtt_jax.diffusion.reverse import reverse_step, unmask_prob
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.ops.values import check_numbers
from sdtt_jax.typing import (
    Hidden,
    Key,
    Keys,
    Params,
    PerSequence,
    PerSequenceLike,
    ScalarLike,
    Tokens,
    TokensLike,
)


def step_times(
    t: PerSequence, dt: ScalarLike, k: int, *, reference_times: bool = False
) -> jax.Array:
    """Times at which the teacher is called: `[k, batch]` float32, at least `SAMPLING_EPS`.

    Args:
      t: `[batch]` float32, the student's time.
      dt: `[]` float32, the teacher's step; may be traced.
      k: teacher steps.
      reference_times: the reference code's interpolation instead of the paper's `t - i dt`.
    """
    if reference_times:
        space = jnp.linspace(1.0, 0.0, k, dtype=jnp.float32)[:, None]
        times = t * space + (1.0 - t) * (t - k * dt)
    else:
        times = t - jnp.arange(k, dtype=jnp.float32)[:, None] * dt
    return jnp.maximum(times, SAMPLING_EPS)


def stitch(target: Hidden, hidden: Hidden, x: Tokens, mask_id: int) -> Hidden:
    """Updates the targets with one teacher call: positions still masked in `x` take this call's state.

    A revealed position keeps its target, so after all calls each position holds the hidden state of the call
    that revealed it, or of the last call.

    Args:
      target, hidden: `[batch, length, embed]`, the targets so far and the teacher's state at `x`.
      x: `[batch, length]` int32, the state that the teacher was called on.
      mask_id: the id of MASK.
    """
    return jnp.where((x == mask_id)[..., None], hidden, target)


@jax.named_scope("teacher")
def teacher_targets(
    diffusion: MaskedDiffusion,
    params: Params,
    keys: Keys,
    x_t: TokensLike,
    t: PerSequenceLike,
    dt: ScalarLike,
    config: DistillConfig,
) -> jax.Array:
    """Targets from independent teacher trajectories of k reverse steps.

    The last step's draws would change nothing (its state goes to all positions that reach it masked),
    so they are not made; the first call is shared by all trajectories.

    Args:
      diffusion, params: the teacher; no gradient flows into its parameters.
      keys: `[num_trajectories]` PRNG keys.
      x_t: `[batch, length]` int32.
      t: `[batch]` float32.
      dt: `[]` float32, the teacher's step, above 0 and at most 1; may be traced.
      config: number of steps k, and their times.

    Returns:
      `[num_trajectories, batch, length, embed]` hidden states; `denoiser.logits(params, …)`
      turns them into the targets' logits. Positions that are not masked in `x_t` hold the first call's
      state and must not be used.

    Raises:
      ConfigError: `keys` is a single key or none, `x_t` holds ids that do not exist, `t` is not a time for
        each text, or `dt` not a number in (0, 1].

    Examples:
      >>> import sdtt_jax
      >>> config = sdtt_jax.DenoiserConfig(5, length=8, num_layers=1, embed_dim=16, num_heads=2)
      >>> diffusion = sdtt_jax.MaskedDiffusion(sdtt_jax.Denoiser(config), sdtt_jax.make_schedule())
      >>> params = sdtt_jax.unbox(jax.jit(sdtt_jax.Denoiser(config).init)(jax.random.key(0)))
      >>> x_t = jnp.full((2, 8), diffusion.mask_id, jnp.int32)
      >>> keys, t = jax.random.split(jax.random.key(1), 3), jnp.ones(2)
      >>> config = sdtt_jax.DistillConfig(num_distill_steps=2)
      >>> teacher_targets(diffusion, params, keys, x_t, t, jnp.float32(1 / 8), config).shape
      (3, 2, 8, 16)
    """
    instance(DistillConfig, config=config)
    typed = hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    require(
        getattr(keys, "ndim", None) == (1 if typed else 2) and len(keys) > 0,
        "keys must be an array of keys, one for each of at least one trajectory; pass keys[None] for one.",
    )
    k, reference_times = config.num_distill_steps, config.reference_times
    first, steps = first_call(diffusion, params, x_t, t, dt, k, reference_times=reference_times)
    return jax.lax.map(lambda key: last_call(diffusion, params, key, first, steps).targets, keys)


class TeacherCall(NamedTuple):
    """A network call on a teacher's trajectory."""

    x: Tokens  # `[batch, length]` int32, the state that the teacher is called on
    hidden: Hidden  # `[batch, length, embed]`, its hidden states there
    targets: Hidden  # `[batch, length, embed]`, stitched over the calls up to this one


class TeacherSteps(NamedTuple):
    """The k steps of a teacher's trajectories, each from one call to the next."""

    sigmas: jax.Array  # `[k, batch]` float32, the total noise at the call that begins the step
    probs: jax.Array  # `[k, batch]` float32, the chance that the step reveals a position


def first_call(
    diffusion: MaskedDiffusion,
    params: Params,
    x_t: TokensLike,
    t: PerSequenceLike,
    dt: ScalarLike,
    k: int,
    *,
    reference_times: bool = False,
) -> tuple[TeacherCall, TeacherSteps]:
    """The first of the teacher's calls, which all trajectories share, and the steps after it.

    Args:
      diffusion, params, x_t, t, dt: as for `teacher_targets`.
      k, reference_times: as for `step_times`.
    """
    check_numbers("(0, 1]", (), dt=dt)
    x_t = jnp.asarray(as_rows(x_t, diffusion.mask_id + 1, "x_t"))
    check_numbers("[0, 1]", x_t.shape[:1], t=t)
    t, dt = jnp.asarray(t, jnp.float32), jnp.asarray(dt, jnp.float32)
    times = step_times(t, dt, k, reference_times=reference_times)
    sigmas = diffusion.schedule.sigma(times)
    probs = unmask_prob(diffusion.schedule, times, times - dt)
    hidden = diffusion.denoiser.hidden(jax.lax.stop_gradient(params), x_t, sigmas[0])
    return TeacherCall(x_t, hidden, hidden), TeacherSteps(sigmas, probs)


def last_call(
    diffusion: MaskedDiffusion, params: Params, key: Key, first: TeacherCall, steps: TeacherSteps
) -> TeacherCall:
    """The last of the teacher's k calls on one trajectory; the draws after it are not made.

    Args:
      diffusion, params: the teacher; no gradient flows into its parameters.
      key: PRNG key; the draws after call i are made with `fold_in(key, i)`.
      first, steps: from `first_call`.
    """
    denoiser, params, k = diffusion.denoiser, jax.lax.stop_gradient(params), len(steps.probs)

    def next_call(
        call: TeacherCall, step: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[TeacherCall, None]:
        index, prob, sigma_next = step
        key_step = jax.random.fold_in(key, index)
        x = reverse_step(diffusion, params, key_step, call.x, call.hidden, prob)
        hidden = denoiser.hidden(params, x, sigma_next)
        return TeacherCall(x, hidden, stitch(call.targets, hidden, x, denoiser.mask_id)), None

    numbers = jnp.arange(k - 1, dtype=jnp.int32)
    last, _ = jax.lax.scan(next_call, first, (numbers, steps.probs[:-1], steps.sigmas[1:]))
    return last
