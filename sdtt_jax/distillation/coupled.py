"""Noise-coupled distillation: the student is shown the noise that makes its teacher's trajectory.

Tokens that are revealed together are drawn independently, so that a student which sees the tokens alone is
bounded by the best product of marginals. Here every position has its noise in advance: a Gumbel number for
each token and a uniform number for its place in the order. The teacher's whole trajectory is then a
deterministic function of (x_t, noise): the positions that are due at a call take `argmax(logits + g)`. A
student that is shown the noise learns a function and not a distribution, the tokens at which the trajectory
arrives, however many come at once; over random noise its texts have the law of the teacher's many steps.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sdtt_jax.config import require, whole, within
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs, sample_t
from sdtt_jax.diffusion.sampler import SamplerConfig, plan_generation, prior_sample, sample
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.ops.noise import Noise, draw_noise
from sdtt_jax.typing import Key, Keys, Logits, Params, PerSequence, PerToken, Scalar, Tokens


@dataclasses.dataclass(frozen=True)
class CoupledDistillConfig:
    """What trajectories the student learns, and how far ahead.

    Attributes:
      num_calls: network calls of the first teacher's trajectory.
      mode, time_grid: how positions fall to calls, of `SamplerConfig`.
      num_distill_calls: 0 is one-shot, the trajectory to its end. Else k, calls that the student learns to
        take at once; each round divides the calls by k, and the student becomes the teacher.
      num_rounds: rounds; one for one-shot.
      full_share: share of the states that are fully masked; the others lie along the trajectory.
    """

    num_calls: int = 8
    mode: str = "first-hitting"
    time_grid: str = "uniform"
    num_distill_calls: int = 0
    num_rounds: int = 1
    full_share: float = 0.4

    def __post_init__(self) -> None:
        whole(1, self, "num_calls", "num_rounds")
        whole(0, self, "num_distill_calls")
        within("[0, 1]", self, "full_share")
        self.trajectory(1)
        k = self.num_distill_calls
        require(
            k != 1, "num_distill_calls=1 teaches the student what its teacher does; take 2, or 0."
        )
        require(
            k > 0 or self.num_rounds == 1,
            f"num_rounds={self.num_rounds} needs num_distill_calls=2 or more: with 0 the one round already "
            "learns the trajectory to its end.",
        )
        require(
            k == 0 or self.num_calls % k**self.num_rounds == 0,
            f"num_calls={self.num_calls} cannot be divided by num_distill_calls={k} in each of "
            f"num_rounds={self.num_rounds} rounds.",
        )

    def calls_of(self, round: int) -> int:
        """Network calls of the teacher's trajectory in a round, counted from 1."""
        return self.num_calls // max(self.num_distill_calls, 1) ** (round - 1)

    def trajectory(self, round: int) -> SamplerConfig:
        """The sampler that makes the teacher's trajectory in a round."""
        return SamplerConfig(self.calls_of(round), time_grid=self.time_grid, mode=self.mode)


def noise_of(diffusion: MaskedDiffusion, keys: Keys, length: int) -> Noise:
    """The noise of each sequence from a key of its own: `[batch, length]` positions.

    Args:
      diffusion: a model that sees noise.
      keys: `[batch]` PRNG keys.
      length: positions of a sequence.

    Raises:
      ConfigError: the model sees no noise.
    """
    levels = diffusion.noise_levels
    if levels is None:
        raise ConfigError(
            "Noise-coupled distillation needs a student that sees noise, and this network has no noise "
            'features; make it a "coupled" one (CoupledDenoiser).'
        )
    return jax.vmap(lambda key: draw_noise(key, (length,), diffusion.mask_id, levels))(keys)


def trajectory_end(
    teacher: MaskedDiffusion, params: Params, noise: Noise, config: SamplerConfig
) -> Tokens:
    """The texts at which the teacher's trajectories arrive from all MASK: `[batch, length]` int32.

    A function of the noise. Over random noise it has exactly the law of `sampler.sample`. As a position keeps
    its token, the trajectory's state before call c is its end, with MASK wherever the call is c or later.

    Args:
      teacher, params: the model. One that sees no noise draws its tokens with it; one that sees it, the last
        round's student, takes the most probable ones.
      noise: of `[batch, length]` positions.
      config: calls, and how positions fall to them.
    """
    batch, length = noise.order.shape
    x_init = prior_sample(batch, length, teacher.mask_id)
    if teacher.noise_levels is not None:
        config = dataclasses.replace(config, temperature=0.0)
    # What remains to be drawn with this key is nothing.
    state, _ = sample(teacher, params, jax.random.key(0), x_init, config, noise=noise)
    return jax.lax.stop_gradient(state.x)


def states_along(
    diffusion: MaskedDiffusion,
    noise: Noise,
    tokens: Tokens,
    key: Key,
    config: CoupledDistillConfig,
    round: int,
) -> tuple[Tokens, PerSequence, PerToken]:
    """A state of each trajectory, and the positions whose tokens the student is to learn there.

    One-shot, a state may lie between any two positions of the order: within a call's positions it is no state
    of the trajectory, but the end is the same. In rounds it lies before every k-th call.

    Args:
      diffusion: the student; tells the total noise at which the network is called.
      noise, tokens: of the trajectories, and where they end: `[batch, length]`.
      key: PRNG key.
      config: one-shot or in rounds; share of states that are fully masked.
      round: counted from 1.

    Returns:
      `x_t: [batch, length]` int32, `sigma: [batch]` float32, and weights `[batch, length]` float32: 1 where a
      masked position is reached, one-shot all of them, else those of the next k calls.
    """
    batch, length = tokens.shape
    k, sampler = config.num_distill_calls, config.trajectory(round)
    if k == 0:
        sampler = SamplerConfig(length, mode="first-hitting")
    x_init = prior_sample(batch, length, diffusion.mask_id)
    plan = plan_generation(diffusion, key, x_init, sampler, noise)
    # Spread evenly over the batch, as times are: one uniform number decides both whether and where.
    even = sample_t(key, batch, eps=0.0)
    along = jnp.maximum(even - config.full_share, 0.0) / max(1.0 - config.full_share, 1e-6)
    stride, reach = (k, k) if k else (1, length)
    turns = sampler.num_steps // stride
    start = stride * jnp.minimum((along * turns).astype(jnp.int32), turns - 1)
    masked = plan.call >= start[:, None]
    reached = masked & (plan.call < start[:, None] + reach)
    x_t = jnp.where(masked, diffusion.mask_id, tokens)
    return x_t, plan.sigmas[start, jnp.arange(batch)], reached.astype(jnp.float32)


def coupled_terms(
    diffusion: MaskedDiffusion,
    params: Params,
    noise: Noise,
    tokens: Tokens,
    key: Key,
    config: CoupledDistillConfig,
    round: int = 1,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy on the tokens at which the teacher's trajectories arrive, and how many they are.

    Args:
      diffusion, params: the student; it sees noise.
      noise, tokens: of the trajectories, and where they end (`trajectory_end`): `[batch, length]`.
      key: PRNG key of the states.
      config: one-shot or in rounds.
      round: counted from 1.

    Returns:
      `(total, count)`: `[]` float32 each; `total / max(count, 1)` is the loss in nats per reached token.
    """
    denoiser = diffusion.denoiser
    x_t, sigma, weights = states_along(diffusion, noise, tokens, key, config, round)

    def cross_entropy(logits: Logits, target: jax.Array) -> jax.Array:
        log_probs = masked_log_probs(logits, denoiser.mask_id)
        return -jnp.take_along_axis(log_probs, target[:, None], axis=-1)[:, 0]

    total, _ = weighted_loss(
        denoiser.logits,
        cross_entropy,
        denoiser.head_params(params),
        diffusion.hidden(params, x_t, sigma, noise),
        weights,
        tokens,
    )
    return total, weights.sum()
