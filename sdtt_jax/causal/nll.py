"""A causal network on text: the negative log-likelihood of every token, and the loss to train on."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.head_loss import selected_losses, weighted_loss


def causal_nll(model: CausalNetwork, params: Any, tokens: jax.Array, bos_id: int) -> jax.Array:
    """-log p of every token given BOS and the tokens before it: `[batch, length]` float32.

    Values only: differentiating it raises; train on `causal_loss`.

    Args:
      model, params: the causal network.
      tokens: `[batch, length]` int32.
      bos_id: what stands before the first token, so that it is scored too.
    """
    return selected_losses(
        model.logits,
        _next_token_nll,
        model.head_params(params),
        (),
        _preceding_hidden(model, params, tokens, bos_id),
        jnp.ones(tokens.shape, bool),
        tokens,
    )


def causal_loss(model: CausalNetwork, params: Any, tokens: jax.Array, bos_id: int) -> jax.Array:
    """The sum of `causal_nll`, to train on: `[]` float32."""
    total, _ = weighted_loss(
        model.logits,
        _next_token_nll,
        model.head_params(params),
        (),
        _preceding_hidden(model, params, tokens, bos_id),
        jnp.ones(tokens.shape, jnp.float32),
        tokens,
    )
    return total


def _preceding_hidden(
    model: CausalNetwork, params: Any, tokens: jax.Array, bos_id: int
) -> jax.Array:
    """At each position the state that has seen BOS and the tokens before it: `[batch, length, embed]`."""
    inputs = jnp.concatenate([jnp.full_like(tokens[:, :1], bos_id), tokens[:, :-1]], axis=1)
    return model.hidden(params, inputs)


def _next_token_nll(logits: jax.Array, whole: tuple[()], tokens: jax.Array) -> jax.Array:
    """`[n, vocab]`, `[n]` → `[n]`."""
    del whole
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
