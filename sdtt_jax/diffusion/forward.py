"""The forward process q(x_t | x_0) of absorbing-state diffusion, and the SUBS parameterisation."""

import jax
import jax.numpy as jnp
import optax

from sdtt_jax.config import require, whole
from sdtt_jax.ops.categorical import NEG_INFINITY
from sdtt_jax.ops.tokens import as_ids, as_rows
from sdtt_jax.ops.values import check_numbers
from sdtt_jax.typing import (
    Key,
    Logits,
    LogitsLike,
    LogProbs,
    PerSequence,
    PerSequenceLike,
    PerToken,
    PositionsLike,
    Tokens,
    TokensLike,
)

# Smallest time that is sampled or denoised from: at 0 nothing is masked and the NELBO's weight diverges.
SAMPLING_EPS = 1e-5


def sample_t(
    key: Key,
    batch: int,
    *,
    antithetic: bool = True,
    eps: float = SAMPLING_EPS,
    offsets: PerSequenceLike | None = None,
) -> PerSequence:
    """Times in [eps, 1], `[batch]` float32.

    Args:
      key: PRNG key.
      batch: how many times.
      antithetic: one uniform draw and an even grid of offsets, modulo 1, so that every batch covers the
        whole range (lower variance); each single time is still uniform.
      eps: the smallest time.
      offsets: `[batch]` float32 in [0, 1), the grid where not all times count; None: j / batch.

    Raises:
      ConfigError: `batch` is not a positive whole number, `eps` or one of the offsets does not lie in
        [0, 1), or these have another shape.
    """
    whole(1, batch=batch)
    check_numbers("[0, 1)", (), eps=eps)
    if antithetic:
        if offsets is None:
            offsets = jnp.arange(batch, dtype=jnp.float32) / batch
        else:
            check_numbers("[0, 1)", (batch,), offsets=offsets)
        u = (jax.random.uniform(key, (), jnp.float32) + jnp.asarray(offsets, jnp.float32)) % 1.0
    else:
        u = jax.random.uniform(key, (batch,), jnp.float32)
    return eps + (1.0 - eps) * u


def mask_tokens(
    x0: Tokens,
    uniform: PerToken,
    move_chance: PerSequence,
    mask_id: int,
    free: PositionsLike | None = None,
) -> Tokens:
    """Masks each token where its uniform number lies below the move chance.

    Args:
      x0: `[batch, length]` int32.
      uniform: `[batch, length]` float32 in [0, 1).
      move_chance: `[batch]` float32, probability of MASK.
      mask_id: the id of MASK.
      free: `[batch, length]` bool, positions that may be masked; None: all.

    Returns:
      `x_t: [batch, length]` int32.
    """
    masked = uniform < move_chance[:, None]
    if free is not None:
        masked &= jnp.asarray(free, bool)
    return jnp.where(masked, mask_id, x0).astype(jnp.int32)


def q_xt(
    key: Key,
    x0: TokensLike,
    move_chance: PerSequenceLike,
    mask_id: int,
    free: PositionsLike | None = None,
) -> Tokens:
    """A draw of q(x_t | x_0): masks each token with probability `move_chance` (MDLM, arXiv 2406.07524).

    Args:
      key: PRNG key.
      x0: `[batch, length]` int32.
      move_chance: `[batch]` float32, from `Schedule.move_chance`.
      mask_id: the id of MASK.
      free: `[batch, length]` bool, positions that may be masked; None: all.

    Returns:
      `x_t: [batch, length]` int32.

    Raises:
      ConfigError: `x0` does not hold ids (but floats, for example), or holds ids that do not exist; or
        `move_chance` is not one probability for each text, or `free` has another shape.

    Examples:
      >>> q_xt(jax.random.key(0), jnp.array([[1, 2], [3, 4]]), jnp.array([0.0, 1.0]), mask_id=9)
      Array([[1, 2],
             [9, 9]], dtype=int32)
    """
    x0 = jnp.asarray(as_rows(x0, mask_id + 1, "x0"))
    check_numbers("[0, 1]", x0.shape[:1], move_chance=move_chance)
    shape = x0.shape if free is None else jnp.shape(free)
    require(shape == x0.shape, f"free must be {list(x0.shape)} like x0, not {list(shape)}.")
    uniform = jax.random.uniform(key, x0.shape, jnp.float32)
    return mask_tokens(x0, uniform, jnp.asarray(move_chance, jnp.float32), mask_id, free)


def without_mask(logits: Logits, mask_id: int) -> Logits:
    """Makes MASK impossible in `logits: [..., vocab]`: `NEG_INFINITY` is added to its entry."""
    is_mask = jnp.arange(logits.shape[-1], dtype=jnp.int32) == mask_id
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return logits + jnp.where(is_mask, jnp.asarray(NEG_INFINITY, logits.dtype), 0.0)


def masked_log_probs(logits: LogitsLike, mask_id: int) -> LogProbs:
    """SUBS log-probabilities of positions that are masked: MASK has probability zero.

    Args:
      logits: `[..., vocab]` float32.
      mask_id: the id of MASK.

    Returns:
      `[..., vocab]` float32.
    """
    logits = without_mask(jnp.asarray(logits), mask_id)
    # Not `log_softmax`, which subtracts the maximum first: at -1e6 float32 resolves 1/16, and rounding
    # MASK's entry twice moves divergences that look at it (mse, log-l1) off the reference by 5e-5.
    log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    # A network's own impossible logits may be -inf, as its padding: 0 * inf would be NaN.
    return jnp.maximum(log_probs, 2 * NEG_INFINITY)


def token_nll(logits: Logits, tokens: jax.Array, mask_id: int) -> jax.Array:
    """-log p of tokens at masked positions, MASK impossible: `[n]` float32, nats.

    Args:
      logits: `[n, vocab]` float32.
      tokens: `[n]` int32.
      mask_id: the id of MASK.
    """
    return optax.softmax_cross_entropy_with_integer_labels(without_mask(logits, mask_id), tokens)


def subs_log_probs(logits: LogitsLike, x_t: TokensLike, mask_id: int) -> LogProbs:
    """SUBS (MDLM, arXiv 2406.07524, section 3.2.3): MASK impossible, unmasked tokens carried over.

    Args:
      logits: `[batch, length, vocab]` float32, MASK's column among them. Columns after it, which pad the
        vocabulary, must be very low already, as `DenoiserLike.logits` has them: they count like tokens.
      x_t: `[batch, length]` int32.
      mask_id: the id of MASK.

    Returns:
      `log p(x_0 | x_t)`: `[batch, length, vocab]` float32; impossible entries are about
      `NEG_INFINITY` (finite, so that 0 * log 0 is 0 in values and gradients).

    Raises:
      ConfigError: `logits` is not one row for each position of `x_t`, or has no column for MASK; or `x_t`
        holds ids that do not exist.

    Examples:
      >>> x_t = jnp.array([[0, 2]])  # a token of the vocabulary {0, 1}, and MASK
      >>> jnp.exp(subs_log_probs(jnp.zeros((1, 2, 3)), x_t, mask_id=2))
      Array([[[1. , 0. , 0. ],
              [0.5, 0.5, 0. ]]], dtype=float32)
    """
    logits, x_t = jnp.asarray(logits), jnp.asarray(as_ids(x_t, mask_id + 1, "x_t"))
    shape, wanted = logits.shape, x_t.shape
    require(
        shape[:-1] == wanted and shape[-1:] > (mask_id,),
        f"logits of x_t: {list(wanted)} must be {[*wanted, 'vocab']} with a column for each token and MASK, "
        f"at least {mask_id + 1}, not {list(shape)}.",
    )
    carried = jnp.where(
        jnp.arange(logits.shape[-1], dtype=jnp.int32) == x_t[..., None], 0.0, NEG_INFINITY
    )
    return jnp.where((x_t == mask_id)[..., None], masked_log_probs(logits, mask_id), carried)
