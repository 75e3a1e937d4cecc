"""Noise-coupled distillation: the student is shown the noise that makes its teacher's trajectory.

Tokens that are revealed together are drawn independently, so a student that sees only tokens can do no better
than the best product of marginals. Here every position gets its noise in advance: a Gumbel number for each
token and a uniform number for its place in the order. The teacher's whole trajectory is then a deterministic
function of (x_t, noise): the positions that are due at a call take `argmax(logits + g)`. A student that is
shown the noise learns a function instead of a distribution: the tokens at which the trajectory ends, however
many are revealed at once. Over random noise its texts are distributed like those of the teacher's
many steps.

In *hindsight* the student learns the same function from real texts: for each text we draw noise with which
the teacher would have written it. The student then sees only noise that the teacher turns into real text.
Gumbel Distillation (arXiv 2603.22216) does this with an autoregressive teacher.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.config import at_least, flags, require, whole, within
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs, sample_t, token_nll
from sdtt_jax.diffusion.sampler import SamplerConfig, plan_generation, prior_sample
from sdtt_jax.distillation.divergence import kl_fwd
from sdtt_jax.distillation.trajectories import Teacher, Trajectories
from sdtt_jax.interface import DenoiserLike
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import Hidden, Key, Logits, Params, PerSequence, PerToken, Scalar, Tokens


@dataclasses.dataclass(frozen=True)
class CoupledDistillConfig:
    """The trajectories that the student learns, and how far ahead.

    Attributes:
      num_calls: network calls of the first teacher's trajectory.
      mode: how positions are assigned to calls, as in `SamplerConfig`.
      time_grid: `SamplerConfig.time_grid`, for mode "grid"; ignored by the other modes.
      num_distill_calls: 0 is one-shot: the student learns the whole trajectory. Otherwise k, the calls that
        it learns to take at once; each round divides the calls by k, and the student becomes the teacher.
      num_rounds: rounds; one for one-shot.
      full_share: minimum share of fully masked states. The rest are spread evenly over the trajectory's n
        states (the tokens of a text in one-shot training, else `calls_of` the round divided by k). The first
        of these is also fully masked, so the total share is `full_share + (1 - full_share) / n`.
      hindsight: learn real texts, with the noise from which the teacher would have made them, instead of the
        teacher's own texts; one-shot only.
      independent: show the student noise that the tokens do not depend on, as multi-mask and infinite-mask
        diffusion do; one-shot only. Such noise carries no information about the tokens; for comparison.
      soft_weight: in rounds, weight of the positions that the k calls do not reach; there the student learns
        the teacher's distribution after these calls. 0 leaves them out.
    """

    num_calls: int = 8
    mode: str = "first-hitting"
    time_grid: str = "uniform"
    num_distill_calls: int = 0
    num_rounds: int = 1
    full_share: float = 0.4
    soft_weight: float = 0.0
    hindsight: bool = False
    independent: bool = False

    def __post_init__(self) -> None:
        whole(1, self, "num_calls", "num_rounds")
        whole(0, self, "num_distill_calls")
        at_least(0, self, "soft_weight")
        within("[0, 1]", self, "full_share")
        flags(self, "hindsight", "independent")
        self.trajectory(1)
        require(
            parse_mode(self.mode).only_plans,
            f"mode={self.mode}: the noise must decide in advance which call reveals each position, for each "
            "round's number of calls, so nothing may depend on the text as it grows, and no counts or "
            'temperatures be learnt; take "first-hitting" or "grid", without stop=.',
        )
        k = self.num_distill_calls
        require(k != 1, "num_distill_calls=1 would only copy the teacher; take 2 or more, or 0.")
        require(
            k > 0 or self.num_rounds == 1,
            f"num_rounds={self.num_rounds} needs num_distill_calls=2 or more: with 0 the one round already "
            "learns the trajectory to its end.",
        )
        require(
            k == 0 or not self.hindsight,
            f"hindsight=True learns whole texts at once and needs num_distill_calls=0, not {k}.",
        )
        require(
            k == 0 or not self.independent,
            f"independent=True needs num_distill_calls=0, not {k}: this noise does not determine the "
            "student's text, so the student cannot be the next round's teacher.",
        )
        require(
            k > 0 or self.soft_weight == 0,
            f"soft_weight={self.soft_weight} needs num_distill_calls=2 or more; with 0 the student reaches "
            "all positions.",
        )
        require(
            k == 0 or self.num_calls % k**self.num_rounds == 0,
            f"num_calls={self.num_calls} cannot be divided by num_distill_calls={k} in each of "
            f"num_rounds={self.num_rounds} rounds.",
        )

    def calls_of(self, round: int) -> int:
        """Network calls of the teacher's trajectory in a round, counted from 1."""
        # A NumPy number of few bits would overflow in the power.
        return self.num_calls // max(self.num_distill_calls, 1) ** (int(round) - 1)

    def trajectory(self, round: int) -> SamplerConfig:
        """The sampler that makes the teacher's trajectory in a round."""
        # Stored configs of earlier versions may name a grid that their mode has no use for.
        timed = parse_mode(self.mode).decoder.timed
        grid = self.time_grid if timed else SamplerConfig.time_grid
        return SamplerConfig(self.calls_of(round), time_grid=grid, mode=self.mode)


class States(NamedTuple):
    """A state of each trajectory, and the tokens that the student learns there.

    Attributes:
      x_t, sigma: `[batch, length]` int32, and `[batch]` float32, the student's total noise.
      reached: `[batch, length]` float32, 1 at the masked positions whose tokens the student learns.
      x_s, sigma_s: the trajectory's state and total noise once these positions are revealed.
    """

    x_t: Tokens
    sigma: PerSequence
    reached: PerToken
    x_s: Tokens
    sigma_s: PerSequence


def states_along(
    diffusion: MaskedDiffusion,
    trajectories: Trajectories,
    key: Key,
    config: CoupledDistillConfig,
    round: int,
) -> States:
    """A state of each trajectory, and the positions whose tokens the student is to learn there.

    In one-shot training a state may lie between any two positions of the order. Between two positions of the
    same call it is not a state of the trajectory, but it leads to the same end. All masked positions count as
    reached. In rounds a state lies before every k-th call, and the positions that the next k calls reveal
    count as reached.

    Args:
      diffusion: the student, whose schedule gives the total noise at each state.
      trajectories: their noise and final tokens.
      key: PRNG key.
      config: one-shot or in rounds, and the share of states that are fully masked.
      round: counted from 1.

    Raises:
      ConfigError: the final tokens have another shape, or hold ids that are not tokens.
    """
    noise, tokens = trajectories.noise, as_rows(trajectories.tokens, diffusion.mask_id)
    batch, length = tokens.shape
    k, sampler = config.num_distill_calls, config.trajectory(round)
    if k == 0:
        sampler = SamplerConfig(length, mode="first-hitting")
    x_init = prior_sample(batch, length, diffusion.mask_id)
    plan = plan_generation(diffusion, key, x_init, sampler, noise)
    # Spread evenly over the batch, as times are: one uniform number per text decides both whether its state
    # is fully masked and where else it lies.
    even = sample_t(key, batch, eps=0.0)
    along = jnp.maximum(even - config.full_share, 0.0) / max(1.0 - config.full_share, 1e-6)
    stride, reach = (k, k) if k else (1, length)
    turns = sampler.num_steps // stride
    start = stride * jnp.minimum((along * turns).astype(jnp.int32), turns - 1)
    end = jnp.minimum(start + reach, sampler.num_steps)

    def at(call: jax.Array) -> tuple[jax.Array, Tokens, PerSequence]:
        masked = plan.call >= call[:, None]
        return (
            masked,
            jnp.where(masked, diffusion.mask_id, tokens),
            plan.sigmas[call, jnp.arange(batch)],
        )

    masked, x_t, sigma = at(start)
    left, x_s, sigma_s = at(end)
    return States(x_t, sigma, (masked & ~left).astype(jnp.float32), x_s, sigma_s)


def coupled_terms(
    diffusion: MaskedDiffusion,
    params: Params,
    trajectories: Trajectories,
    key: Key,
    config: CoupledDistillConfig,
    round: int = 1,
    teacher: Teacher | None = None,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy on the final tokens of the teacher's trajectories, and the number of tokens.

    With `config.soft_weight`, positions that are not reached add KL(teacher ‖ student); the teacher is shown
    the tokens of the reached positions.

    Args:
      diffusion, params: the student; it sees noise.
      trajectories: their noise and their final tokens (`trajectory_end`).
      key: PRNG key of the states.
      config: one-shot or in rounds.
      round: counted from 1.
      teacher: needed only if `config.soft_weight` is above 0.

    Returns:
      `(total, count)`: `[]` float32 each; `total / max(count, 1)` is the loss in nats per reached token. A
      token that is not reached counts as `config.soft_weight` tokens.
    """
    denoiser = diffusion.denoiser
    states = states_along(diffusion, trajectories, key, config, round)
    hidden = diffusion.hidden(params, states.x_t, states.sigma, trajectories.noise)
    cross_entropy = functools.partial(token_nll, mask_id=denoiser.mask_id)
    ends = trajectories.tokens
    total, _ = weighted_loss(denoiser, params, cross_entropy, hidden, states.reached, ends)
    count = states.reached.sum()
    if not config.soft_weight:
        return total, count
    assert teacher is not None, "soft targets need the teacher"
    x_s = states.x_s
    targets = jax.lax.stop_gradient(
        teacher.diffusion.hidden(teacher.params, x_s, states.sigma_s, trajectories.noise)
    )
    weights = jnp.where(x_s == diffusion.mask_id, jnp.float32(config.soft_weight), 0.0)
    soft, _ = weighted_loss(
        denoiser,
        params,
        functools.partial(_divergence, teacher.diffusion.denoiser),
        hidden,
        weights,
        targets,
        (teacher.diffusion.denoiser.head_params(teacher.params),),
    )
    return total + soft, count + weights.sum()


def _divergence(teacher: DenoiserLike, logits: Logits, hidden: Hidden, head: Params) -> jax.Array:
    mask_id = teacher.mask_id
    target, student = (
        masked_log_probs(x, mask_id)[:, :mask_id] for x in (teacher.logits(head, hidden), logits)
    )
    return kl_fwd(student, target, mask_id)
