"""The cross-entropy of a causal network, and the loss to train on.

This is the one place that computes it. `next_token_scores` and `next_token_nll` score any rows of inputs
and targets (windows of long texts, suffixes of cloze items); `causal_nll` and `causal_loss` score whole
texts after a BOS.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdtt_jax.config import instance, within
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.head_loss import selected_losses, weighted_loss
from sdtt_jax.ops.sequences import Arrangement, begins, preceded
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.typing import Params, PerToken, Positions, Scalar, Segments, Tokens, TokensLike

_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class TokenScores(NamedTuple):
    """What a causal network says of each target."""

    # `[batch, length]` float32, -log p of the target in nats; 0 where it is not scored.
    nll: PerToken
    # `[batch, length]` bool, whether the most probable token is another one; False where it is not scored.
    missed: Positions


def next_token_scores(
    network: CausalNetwork, params: Params, inputs: Tokens, targets: Tokens, scored: Positions
) -> TokenScores:
    """-log p of each scored target given the inputs up to its place, and whether greedy decoding misses it.

    Values only: under `jit` differentiating it raises.

    Args:
      network, params: the causal network.
      inputs, targets: `[batch, length]` int32; `targets[:, i]` is predicted from `inputs[:, : i + 1]`.
      scored: `[batch, length]` bool; the head runs on these positions only.
    """

    def scores(logits: jax.Array, targets: jax.Array) -> jax.Array:
        missed = jnp.argmax(logits, axis=-1) != targets
        return jnp.stack([_cross_entropy(logits, targets), missed], axis=-1)

    hidden = network.hidden(params, inputs)
    both = selected_losses(network, params, scores, hidden, scored, targets)
    return TokenScores(both[..., 0], both[..., 1] != 0)


def next_token_nll(
    network: CausalNetwork,
    params: Params,
    inputs: Tokens,
    targets: Tokens,
    scored: Positions,
    segments: Segments | None = None,
) -> PerToken:
    """Only `next_token_scores(…).nll`: `[batch, length]` float32, nats; attention keeps to `segments`.

    Finding the most probable token takes two fifths more time (two layers of 256 and a vocabulary of 50,257
    on a CPU: 0.68 s instead of 0.48 for 1,024 tokens), so callers that do not need it call this function.
    """
    hidden = network.hidden(params, inputs, segments)
    return selected_losses(network, params, _cross_entropy, hidden, scored, targets)


def causal_nll(
    network: CausalNetwork,
    params: Params,
    tokens: TokensLike,
    bos_id: int,
    arrangement: Arrangement | None = None,
) -> PerToken:
    """-log p of every token given BOS and the tokens before it: `[batch, length]` float32, nats.

    Values only: under `jit` differentiating it raises; train on `causal_loss`.

    Args:
      network, params: the causal network.
      tokens: `[batch, length]` int32.
      bos_id: the token put before the first one, so that the first is scored too.
      arrangement: of the positions, as for `causal_loss`; prompts and padding have 0.

    Raises:
      ConfigError: `network` is not causal; `tokens` has another shape, or holds ids that are not tokens; or
        `bos_id` is not a token.
    """
    tokens, inputs, segments = _checked(network, tokens, bos_id, arrangement)
    scored = jnp.ones(tokens.shape, bool) if arrangement is None else arrangement.free
    return next_token_nll(network, params, inputs, tokens, scored, segments)


def causal_loss(
    network: CausalNetwork,
    params: Params,
    tokens: TokensLike,
    bos_id: int,
    arrangement: Arrangement | None = None,
) -> Scalar:
    """The sum of `causal_nll` over the batch, to train on: `[]` float32, nats.

    Args:
      network, params: the causal network; differentiable with respect to its parameters.
      tokens: `[batch, length]` int32.
      bos_id: the token put before the first one, so that the first is scored too.
      arrangement: of the positions: BOS is put before the first token of each text, and prompts and padding
        are not scored. None: every sequence is one text.

    Raises:
      ConfigError: as `causal_nll`.
    """
    tokens, inputs, segments = _checked(network, tokens, bos_id, arrangement)
    hidden = network.hidden(params, inputs, segments)
    weights = jnp.ones(tokens.shape, jnp.float32)
    if arrangement is not None:
        weights = arrangement.free.astype(jnp.float32)
    return weighted_loss(network, params, _cross_entropy, hidden, weights, tokens)[0]


def _checked(
    network: CausalNetwork, tokens: TokensLike, bos_id: int, arrangement: Arrangement | None
) -> tuple[Tokens, Tokens, Segments | None]:
    """The tokens, what the network reads to predict them, and the segments that it keeps to."""
    instance(CausalNetwork, network=network)  # a denoiser sees what it would predict
    vocab = network.config.vocab_size
    if not isinstance(bos_id, jax.core.Tracer):
        within(f"[0, {vocab})", bos_id=bos_id)
    tokens = jnp.asarray(as_rows(tokens, vocab))
    inputs = preceded(tokens, bos_id)
    if arrangement is None:
        return tokens, inputs, None
    segments = arrangement.segments
    return tokens, jnp.where(begins(segments), bos_id, inputs), segments
