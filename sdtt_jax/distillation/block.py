"""Shared parts of the distillers that consider several tokens at once.

A *block* is the set of masked positions that one network call of a sampler reveals.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import mask_tokens, sample_t, token_nll
from sdtt_jax.interface import DenoiserLike
from sdtt_jax.ops.head_loss import selected_losses, weighted_loss
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import (
    Hidden,
    Key,
    Params,
    PerSequence,
    PerToken,
    Positions,
    Tokens,
    TokensLike,
)


class Block(NamedTuple):
    """Partly masked texts, and the positions that the sampler's next call reveals."""

    x_t: Tokens  # `[batch, length]` int32
    sigma: PerSequence  # `[batch]` float32, total noise passed to the network
    revealed: Positions  # `[batch, length]` bool, some of the masked positions
    x0: Tokens  # `[batch, length]` int32, the clean tokens


def draw_block(diffusion: MaskedDiffusion, x0: TokensLike, key: Key, num_calls: int) -> Block:
    """Texts as one of `num_calls` calls on the uniform time grid sees them, and the positions it reveals.

    All calls are equally likely, and they are spread evenly over the batch. Positions that may not be masked
    (outside `diffusion.free`) are shown.

    Args:
      diffusion: the model.
      x0: `[batch, length]` int32, clean tokens.
      key: PRNG key.
      num_calls: network calls of the sampler, `SamplerConfig(num_calls)`.

    Raises:
      ConfigError: `x0` has another shape, or holds ids that are not tokens.
    """
    x0 = jnp.asarray(as_rows(x0, diffusion.mask_id, "x0"))
    key_call, key_mask = jax.random.split(key)
    schedule = diffusion.schedule
    call = jnp.floor(num_calls * sample_t(key_call, len(x0), eps=0.0))
    t = 1.0 - jnp.minimum(call, num_calls - 1.0) / num_calls
    # As the sampler, which begins with MASK alone even where a schedule leaves some tokens clean at time 1.
    most = schedule.move_chance(jnp.float32(1.0))
    chance = schedule.move_chance(t) / most
    left = schedule.move_chance(jnp.maximum(t - 1.0 / num_calls, 0.0)) / most
    uniform = jax.random.uniform(key_mask, x0.shape, jnp.float32)
    x_t = mask_tokens(x0, uniform, chance, diffusion.mask_id, diffusion.free)
    # The last call reveals what is left, even under a schedule that masks some tokens at time 0.
    last = (t - 1.0 / num_calls < 0.5 / num_calls)[:, None]
    revealed = (x_t == diffusion.mask_id) & (last | (uniform >= left[:, None]))
    return Block(x_t, schedule.sigma(t), revealed, x0)


def token_log_probs(
    denoiser: DenoiserLike, params: Params, hidden: Hidden, selected: Positions, tokens: Tokens
) -> PerToken:
    """`log p(token)` at the selected positions and 0 elsewhere, differentiable in `params` and `hidden`.

    As in `ops.head_loss`, `[batch * length, vocab]` never exists. But a position's gradient depends on how
    the caller combines all log-probabilities, so the backward pass applies the head again.

    Args:
      denoiser, params: the network.
      hidden: `[batch, length, embed]`.
      selected: `[batch, length]` bool, masked positions.
      tokens: `[batch, length]` int32.

    Returns:
      `[batch, length]` float32, nats.
    """
    head = denoiser.head_params(params)
    return _token_log_probs(denoiser, *vary_alike(head, hidden, selected, tokens))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_log_probs(
    denoiser: DenoiserLike, head: Params, hidden: Hidden, selected: Positions, tokens: Tokens
) -> PerToken:
    nll = functools.partial(token_nll, mask_id=denoiser.mask_id)
    return -selected_losses(denoiser, head, nll, hidden, selected, tokens)


def _forward(
    denoiser: DenoiserLike, head: Params, hidden: Hidden, selected: Positions, tokens: Tokens
) -> tuple[PerToken, tuple]:
    saved = (head, hidden, selected, tokens)
    return _token_log_probs(denoiser, *saved), saved


def _backward(denoiser: DenoiserLike, saved: tuple, cotangent: PerToken) -> tuple:
    head, hidden, selected, tokens = saved
    weights = jnp.where(selected, -cotangent, 0.0)
    nll = functools.partial(token_nll, mask_id=denoiser.mask_id)

    def total(head: Params, hidden: Hidden) -> jax.Array:
        return weighted_loss(denoiser, head, nll, hidden, weights, tokens)[0]

    return *jax.grad(total, argnums=(0, 1))(head, hidden), None, None


_token_log_probs.defvjp(_forward, _backward)
