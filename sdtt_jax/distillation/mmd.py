"""Maximum mean discrepancy between the student's completions and real ones (MDLM-MMD, arXiv 2610.06648).

The student completes a masked text in one call, in G groups of B completions. A group's reward is an unbiased
estimate of minus the squared discrepancy, up to a constant, between features of the frozen teacher at
different positions i and j of the set S of completed positions:

    2 / (B |S|^2) sum_b sum_{i != j} k(phi_i(x0), phi_j(x_b))
      - 1 / (B (B - 1) |S| (|S| - 1)) sum_{b != b'} sum_{i != j} k(phi_i(x_b), phi_j(x_b')),

with `k(a, b) = exp(-gamma |a - b|^2)`. Draws have no gradient, so the loss is REINFORCE's: a group's reward
minus the mean of the others', times the log-probability of the group's draws.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdtt_jax.config import positive, whole
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs
from sdtt_jax.diffusion.reverse import reverse_step
from sdtt_jax.distillation.block import draw_block
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.typing import Key, Logits, Params, Positions, Scalar, Tokens, TokensLike

# (parameters, clean tokens [batch, length]) -> features [batch, length, dim]
Features = Callable[[Params, Tokens], jax.Array]


@dataclasses.dataclass(frozen=True)
class MmdConfig:
    """Completions and kernel, with the paper's numbers."""

    # Calls of the sampler to train for; the student completes texts as one of these calls finds them.
    num_calls: int = 4
    # num_groups, group_size: G and B.
    num_groups: int = 4
    group_size: int = 2
    layer: int = 4  # the teacher's layer whose states are compared, counted from 1
    gamma: float = 2e-5  # of the kernel

    def __post_init__(self) -> None:
        whole(1, self, "num_calls", "layer")
        whole(2, self, "num_groups", "group_size")
        positive(self, "gamma")


def mmd_terms(
    diffusion: MaskedDiffusion,
    params: Params,
    teacher_params: Params,
    features: Features,
    x0: TokensLike,
    key: Key,
    config: MmdConfig,
) -> tuple[Scalar, Scalar]:
    """A loss with the gradient of the discrepancy, and the mean reward.

    Args:
      diffusion, params: the student.
      teacher_params: the parameters of the features; no gradient flows into them.
      features: computes the teacher's features of clean texts.
      x0: `[batch, length]` int32, real texts.
      key: PRNG key.
      config: completions and kernel.

    Returns:
      `(total, reward)`: `[]` float32 each. `total` is a sum over texts, of which only the gradient has a
      meaning; `reward` is the mean over texts and groups.

    Raises:
      ConfigError: `x0` has another shape, or holds ids that are not tokens.
    """
    denoiser, count = diffusion.denoiser, config.num_groups * config.group_size
    key_block, key_draw = jax.random.split(key)
    block = draw_block(diffusion, x0, key_block, config.num_calls)
    asked = block.x_t == diffusion.mask_id
    hidden = diffusion.hidden(params, block.x_t, block.sigma)
    still = jax.lax.stop_gradient((params, hidden))
    ones = jnp.ones(len(block.x0), jnp.float32)

    def complete(key: Key) -> Tokens:
        return reverse_step(diffusion, still[0], key, block.x_t, still[1], ones)

    completions = jax.lax.map(complete, jax.random.split(key_draw, count))
    real = features(teacher_params, block.x0)
    made = jax.lax.map(lambda tokens: features(teacher_params, tokens), completions)
    rewards = jax.lax.stop_gradient(
        jnp.stack(
            [
                group_rewards(real, made[i : i + config.group_size], asked, config.gamma)
                for i in range(0, count, config.group_size)
            ]
        )
    )
    others = (rewards.sum(axis=0) - rewards) / (config.num_groups - 1)
    advantages = jnp.repeat(rewards - others, config.group_size, axis=0)
    total, _ = weighted_loss(
        denoiser,
        params,
        functools.partial(_policy_loss, denoiser.mask_id),
        hidden,
        asked.astype(jnp.float32) / config.num_groups,
        (
            jnp.moveaxis(completions, 0, -1),
            jnp.broadcast_to(advantages.T[:, None], (*asked.shape, count)),
        ),
    )
    return total, rewards.mean()


def _policy_loss(mask_id: int, logits: Logits, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Minus the log-probabilities of tokens `[n, completions]`, each times its advantage, summed: `[n]`."""
    tokens, advantages = rows
    log_probs = jnp.take_along_axis(masked_log_probs(logits, mask_id), tokens, axis=-1)
    return -(advantages * log_probs).sum(axis=-1)


def group_rewards(real: jax.Array, made: jax.Array, asked: Positions, gamma: float) -> jax.Array:
    """Each text's reward for one group of completions: `[batch]` float32.

    Args:
      real: `[batch, length, dim]`, features of the real texts.
      made: `[B, batch, length, dim]`, features of B completions of each text.
      asked: `[batch, length]` bool, the positions S.
      gamma: of the kernel.
    """
    size, s = len(made), asked.sum(axis=-1).astype(jnp.float32)
    attraction = sum(_between(real, one, asked, gamma) for one in made)
    repulsion = sum(
        2 * _between(made[b], made[c], asked, gamma) for b in range(size) for c in range(b)
    )
    pairs = jnp.maximum(s * (s - 1), 1.0)
    return 2 * attraction / (size * jnp.maximum(s, 1.0) ** 2) - repulsion / (
        size * (size - 1) * pairs
    )


def _between(a: jax.Array, b: jax.Array, asked: Positions, gamma: float) -> jax.Array:
    """`sum_{i != j in S} k(a_i, b_j)` of each text: `[batch]`."""

    def one(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        a, b, asked = inputs
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        squares = (a**2).sum(-1)[:, None] + (b**2).sum(-1)[None] - 2 * a @ b.T
        counted = asked[:, None] & asked[None] & ~jnp.eye(len(a), dtype=bool)
        return jnp.where(counted, jnp.exp(-gamma * jnp.maximum(squares, 0.0)), 0.0).sum()

    return jax.vmap(one)((a, b, asked))
