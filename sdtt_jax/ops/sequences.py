"""The parts of a sequence, determined from its tokens: texts side by side, prompts, padding.

A record holds nothing but tokens. EOS says where a text ends in it, and BOS where a prompt ends, so the
arrangement is a pure function of the tokens and of how they were packed.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.ops.sequence_kinds import KINDS as KINDS
from sdtt_jax.ops.sequence_kinds import Sequences as Sequences
from sdtt_jax.typing import Hidden, PerSequence, PerToken, Positions, Scalar, Segments, Tokens

_Array = TypeVar("_Array", jax.Array, np.ndarray)

# The segment of padding: no text has it.
PADDING = -1


class Arrangement(NamedTuple):
    """The roles of the positions of a batch."""

    # `[batch, length]` int32, the text that each position belongs to, `PADDING` for none.
    segments: Segments
    # `[batch, length]` bool, positions that may be masked, and that count: neither padding nor prompt.
    free: Positions


def arrange(tokens: Tokens, sequences: Sequences | None) -> Arrangement | None:
    """Determines the roles of the positions of clean `tokens`; None if all are alike and see each other.

    - "documents": an EOS belongs to the text that it ends, the BOS of a wrapped sequence to its first text.
    - "padded": what follows the first EOS is padding.
    - "prompted": the prompt ends with the first BOS; what follows the first EOS after it is padding.

    Args:
      tokens: `[batch, length]` int32, no MASK.
      sequences: how they were packed; None: all are alike.

    Raises:
      ConfigError: `tokens` has another shape.

    Examples:
      >>> tokens = jnp.array([[5, 6, 1, 7, 1, 8]])
      >>> arrange(tokens, Sequences("documents", bos_id=0, eos_id=1)).segments
      Array([[0, 0, 0, 1, 1, 2]], dtype=int32)
      >>> arrange(jnp.array([[5, 0, 7, 1, 1]]), Sequences("prompted", bos_id=0, eos_id=1)).free
      Array([[False, False,  True,  True, False]], dtype=bool)
    """
    if sequences is None or sequences.kind == "packed":
        return None
    require(tokens.ndim == 2, f"tokens must be [batch, length], not {list(tokens.shape)}.")
    ends, prompt = tokens == sequences.eos_id, jnp.zeros(tokens.shape, bool)
    if sequences.wrap:
        ends = ends.at[:, 0].set(False)  # BOS, which may be the same token
    if sequences.kind == "prompted":
        mark = tokens == sequences.bos_id
        prompt = (_before(mark) == 0) & jnp.any(mark, axis=1, keepdims=True)
        ends &= ~prompt
    number = _before(ends)
    if sequences.kind == "documents":
        return Arrangement(number, jnp.ones(tokens.shape, bool))
    padding = number > 0
    return Arrangement(jnp.where(padding, PADDING, 0), ~(padding | prompt))


_arranged = jax.jit(arrange, static_argnames="sequences")


def arrangement_of(tokens: Tokens | np.ndarray, sequences: Sequences | None) -> Arrangement | None:
    """`arrange` outside of `jit`, where JAX would compile each of its operations for each shape."""
    if sequences is None or sequences.kind == "packed":
        return None
    return _arranged(tokens, sequences)


def single_texts(
    tokens: np.ndarray, sequences: Sequences | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Splits a batch into single texts without padding; also returns the length of each text's prompt.

    Args:
      tokens: `[batch, length]` int32, on the host.
      sequences: how they were packed; None: each is one text.

    Returns:
      int32 arrays `[n]`, and int64 `[texts]`.
    """
    arrangement = arrangement_of(tokens, sequences)
    if arrangement is None:
        return list(tokens), np.zeros(len(tokens), np.int64)
    texts, prompts = [], []
    for row, segments, free in zip(tokens, *map(np.asarray, arrangement), strict=True):
        for number in range(segments.max() + 1):
            mine = segments == number
            texts.append(row[mine])
            prompts.append(np.count_nonzero(~free[mine]))
    return texts, np.array(prompts, np.int64)


def unpadded(
    tokens: np.ndarray, sequences: Sequences | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Whole sequences without their padding, and the length of each one's prompt.

    Arguments and results are those of `single_texts`, but sequences that hold several texts stay whole.
    """
    padded = sequences is not None and sequences.has_padding
    return single_texts(tokens, sequences if padded else None)


def ends_of_texts(tokens: _Array, free: _Array, bos_id: int, eos_id: int) -> _Array:
    """Where an EOS ends the text that is written in a sequence: `[batch, length]` bool.

    Something other than BOS and EOS must precede it (GPT-2 has one token for both, and a text may begin with
    it), and neither it nor any later token was given. The EOS with which `model.prompts.with_length` fills
    the end of a text do not count as given.

    Args:
      tokens: `[batch, length]` int32, of JAX or NumPy.
      free: `[batch, length]` bool, what was not given.
      bos_id, eos_id: of the tokenizer.
    """
    is_eos = tokens == eos_id
    begun = (~is_eos & (tokens != bos_id)).cumsum(axis=1) > 0
    filled_up = _from_here_on(free | ~is_eos) == 0
    given_after = _from_here_on(~(free | filled_up)) > 0
    return is_eos & begun & ~given_after


def begins(segments: Segments) -> Positions:
    """Where a segment begins: `[batch, length]` bool."""
    first = jnp.ones_like(segments[:, :1], bool)
    return jnp.concatenate([first, segments[:, 1:] != segments[:, :-1]], axis=1)


def predicted_before(hidden: Hidden, segments: Segments | None) -> Hidden:
    """States of a network that predicts the next token, each moved to the token that it predicts.

    The first token of a segment has no predecessor: as in Dream (arXiv 2508.15487), it is predicted at its
    own position, which sees it as MASK.

    Args:
      hidden: `[batch, length, embed]`; the state at position i predicts token i + 1.
      segments: the segments of each sequence; None: it is one segment.
    """
    shifted: Hidden = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
    if segments is None:
        return shifted
    return jnp.where(begins(segments)[..., None], hidden, shifted)


def preceded(tokens: Tokens, bos_id: int) -> Tokens:
    """BOS and all tokens but the last: the inputs with which a causal network predicts `tokens`."""
    return jnp.concatenate([jnp.full_like(tokens[:, :1], bos_id), tokens[:, :-1]], axis=1)


def as_read(tokens: Tokens, sequences: Sequences | None) -> tuple[Tokens, Segments | None]:
    """What a causal network reads of `tokens` to predict the next ones, and the segments that it keeps to.

    Of "documents" each text is read on its own, after BOS: an EOS is read as the BOS of the text that follows
    it, and a BOS after it begins that text again. All else is read as it is: padding comes after its text.

    Args:
      tokens: `[batch, length]` int32, of which the first is usually BOS.
      sequences: how the network's training sequences were packed; None: all positions are alike.
    """
    if sequences is None or sequences.kind != "documents":
        return tokens, None
    ends, bos = tokens == sequences.eos_id, tokens == sequences.bos_id
    first = ends | (bos & jnp.pad(ends, ((0, 0), (1, 0)))[:, :-1])
    if sequences.wrap:  # after BOS the sequence's own BOS, which may be the same token as EOS
        first &= ~bos | (jnp.arange(tokens.shape[1], dtype=jnp.int32) != 1)
    read = jnp.where(ends, jnp.int32(sequences.bos_id), tokens)
    return read, jnp.cumsum(first, axis=1, dtype=jnp.int32)


def number_counted(tokens: Tokens, free: Positions | None) -> Scalar:
    """The number of tokens of a batch that count for the loss: `[]` float32.

    Args:
      tokens: `[batch, length]` int32.
      free: `[batch, length]` bool, those that count; None: all.
    """
    return jnp.float32(tokens.size) if free is None else free.sum().astype(jnp.float32)


def mean_counted(values: PerToken, free: Positions | None) -> PerSequence:
    """The mean of each sequence over the positions that count: `[batch]` float32; 0 if none does.

    Args:
      values: `[batch, length]` float32, 0 where nothing counts.
      free: `[batch, length]` bool, what counts; None: all.
    """
    if free is None:
        return values.mean(axis=-1)
    return values.sum(axis=-1) / jnp.maximum(free.sum(axis=-1, dtype=jnp.float32), 1)


def nats_per_token(nll: PerToken, free: Positions | None) -> PerSequence:
    """`mean_counted` of losses: `[batch]` float32, NaN for a sequence in which nothing counts.

    A 0 there, as of a prompt without a completion, would be the best score that there is.
    """
    means = mean_counted(nll, free)
    return means if free is None else jnp.where(free.any(axis=-1), means, jnp.nan)


def text_sums(values: PerToken, arrangement: Arrangement | None) -> jax.Array:
    """The sum of each text's values: `[batch]` if every sequence is one text, else `[batch, length]`.

    Args:
      values: `[batch, length]` float32, 0 at padding.
      arrangement: of the positions; the sums of texts that a sequence does not have are 0.
    """
    if arrangement is None:
        return values.sum(axis=-1)
    rows = jnp.arange(len(values))[:, None]
    return jnp.zeros_like(values).at[rows, jnp.maximum(arrangement.segments, 0)].add(values)


def _from_here_on(where: _Array) -> _Array:
    """The number of True entries at each position and after it."""
    return where[:, ::-1].cumsum(axis=1)[:, ::-1]


def _before(where: jax.Array) -> jax.Array:
    """The number of True entries before each position: int32, the shape of `where`."""
    return jnp.cumsum(where, axis=1, dtype=jnp.int32) - where.astype(jnp.int32)
