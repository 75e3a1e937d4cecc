"""Teacher-free training for few calls: raises the joint probability of the tokens that a call reveals.

The loss of a block S is `(1 - P^alpha) / alpha` with `P = prod_{i in S} p_i(x0_i | x_t)`, the Tsallis form of
`-log P`, its limit at alpha = 0. In that limit every prediction learns its marginal, as under the NELBO. At
alpha > 0 a block's gradient is weighted by `P^alpha`, so the student gives up blocks that it cannot get right
as a whole in favour of those that it can. The loss is mode-seeking, at the cost of variety.
"""

import dataclasses

import jax.numpy as jnp

from sdtt_jax.config import whole, within
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.distillation.block import draw_block, token_log_probs
from sdtt_jax.ops.sequences import text_sums
from sdtt_jax.typing import Key, Params, Scalar, TokensLike


@dataclasses.dataclass(frozen=True)
class AlphaConfig:
    """The loss, and the sampler that the student is trained for.

    Attributes:
      alpha: 0 gives the cross-entropy of the block, 1 gives one minus its probability. A block of n nats has
        the weight `exp(-alpha n)`: for texts, choose about a hundredth, not a half.
      num_calls: network calls of the sampler; a block is what one call reveals.
    """

    alpha: float = 0.02
    num_calls: int = 4

    def __post_init__(self) -> None:
        within("[0, 1]", self, "alpha")
        whole(1, self, "num_calls")


def alpha_terms(
    diffusion: MaskedDiffusion, params: Params, x0: TokensLike, key: Key, config: AlphaConfig
) -> tuple[Scalar, Scalar]:
    """`(1 - P^alpha) / alpha`, summed over one block per text, and the number of positions in the blocks.

    Args:
      diffusion, params: the student; with an arrangement, each text in a sequence has its own block.
      x0: `[batch, length]` int32, clean tokens.
      key: PRNG key.
      config: alpha, and the sampler's calls.

    Returns:
      `(total, count)`: `[]` float32 each. At alpha = 0, `total / max(count, 1)` is in nats per token.

    Raises:
      ConfigError: `x0` has another shape, or holds ids that are not tokens.
    """
    denoiser, block = diffusion.denoiser, draw_block(diffusion, x0, key, config.num_calls)
    log_probs = token_log_probs(
        denoiser,
        params,
        diffusion.hidden(params, block.x_t, block.sigma),
        block.revealed,
        block.x0,
    )
    joint = text_sums(log_probs, diffusion.arrangement)
    # expm1, because 1 - P^alpha would be only rounding error when alpha is small.
    losses = -jnp.expm1(config.alpha * joint) / config.alpha if config.alpha else -joint
    return losses.sum(), block.revealed.sum().astype(jnp.float32)
