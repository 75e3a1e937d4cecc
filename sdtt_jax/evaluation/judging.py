"""What a causal judge says of texts of any length, from its own tokenizer or from another one."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.causal.nll import next_token_nll
from sdtt_jax.config import require
from sdtt_jax.data import Tokenizer
from sdtt_jax.evaluation.batches import batch_rows, batches, join, run_batch
from sdtt_jax.networks.causal import CausalNetwork

# Rows are padded to a multiple of it, so that texts of nearly the same length share one compiled program.
WIDTH = 32


class Scores(NamedTuple):
    """The judge's verdict on each text.

    Attributes:
      nll: `[texts]` float64, nats of all scored tokens.
      scored: `[texts]` int64, how many tokens were scored.
      windows: `[texts]` int64, pieces that the text was cut into because the judge sees no further.
    """

    nll: np.ndarray
    scored: np.ndarray
    windows: np.ndarray

    @property
    def per_token(self) -> np.ndarray:
        """`[texts]`, nats per token; 0 where nothing was scored."""
        return self.nll / np.maximum(self.scored, 1)


class Rows(NamedTuple):
    """Windows of texts as the network reads them.

    Attributes:
      inputs, targets: `[rows, width]` int32; the state after `inputs[:, i]` predicts `targets[:, i]`.
      scored: `[rows, width]` bool.
    """

    inputs: np.ndarray
    targets: np.ndarray
    scored: np.ndarray


def score_texts(
    network: CausalNetwork,
    params: Any,
    texts: Sequence[np.ndarray],
    *,
    bos_id: int | None,
    batch_size: int,
    given: int | np.ndarray = 0,
) -> Scores:
    """Negative log-likelihood of texts of any lengths.

    Args:
      network, params: the judge.
      texts: int32 tokens `[n_i]` of the judge's vocabulary.
      bos_id: stands before the first token, so that it is scored; None: the first token is given.
      batch_size: texts at once.
      given: tokens at the start of the texts, or of each, that are read but not scored (a prompt).

    A text longer than the judge can see is cut into windows, each read on its own.
    """
    limit = network.max_length
    rows, owners = make_rows(texts, bos_id=bos_id, given=given, limit=limit)
    nll = token_nll(network, params, rows, batch_size)
    total = np.zeros(len(texts))
    count, windows = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    np.add.at(total, owners, nll.sum(axis=1))
    np.add.at(count, owners, rows.scored.sum(axis=1))
    np.add.at(windows, owners, 1)
    return Scores(total, count, windows)


def make_rows(
    texts: Sequence[np.ndarray],
    *,
    bos_id: int | None,
    given: int | np.ndarray = 0,
    limit: int | None = None,
) -> tuple[Rows, np.ndarray]:
    """Texts as rows of equal width, and which text each row is of: `[rows]` int64.

    Padding stands at the end, where a causal network sees it too late for it to matter, and is not scored.
    Arguments as in `score_texts`; `limit` is the most positions of a row (None: no limit).
    """
    pieces, owners = [], []
    prompts = np.broadcast_to(given, len(texts))
    for owner, text in enumerate(texts):
        text = np.asarray(text, np.int32)
        if bos_id is not None:
            text = np.concatenate([[np.int32(bos_id)], text])
        first = int(prompts[owner]) + (bos_id is not None)
        step = limit or max(len(text) - 1, 1)
        for start in range(0, max(len(text) - 1, 1), step):
            window = text[start : start + step + 1]
            pieces.append((window, max(first - start, 1)))
            owners.append(owner)
    longest = max((len(window) - 1 for window, _ in pieces), default=1)
    width = -(-max(longest, 1) // WIDTH) * WIDTH
    width = min(width, limit) if limit else width
    rows = Rows(
        np.zeros((len(pieces), width), np.int32),
        np.zeros((len(pieces), width), np.int32),
        np.zeros((len(pieces), width), bool),
    )
    for row, (window, first) in enumerate(pieces):
        size = max(len(window) - 1, 0)
        rows.inputs[row, :size], rows.targets[row, :size] = window[:-1], window[1:]
        rows.scored[row, first - 1 : size] = True
    return rows, np.asarray(owners, np.int64)


def token_nll(network: CausalNetwork, params: Any, rows: Rows, batch_size: int) -> np.ndarray:
    """-log p of every scored token, 0 elsewhere: `[rows, width]` float64."""
    size = batch_rows(params, min(batch_size, len(rows.inputs)))
    function = functools.partial(_token_nll, network)
    nll: np.ndarray = join(
        [
            run_batch(function, params, index, batch, size)
            for index, batch in enumerate(batches(rows, size))
        ]
    )
    return nll


@functools.partial(jax.jit, static_argnames="network")
def _token_nll(network: CausalNetwork, params: Any, index: jax.Array, rows: Rows) -> jax.Array:
    del index
    return next_token_nll(network, params, *map(jnp.asarray, rows))


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give every text the same ids."""
    return one.digest == other.digest and one.normalize == other.normalize


def retokenise(tokens: np.ndarray, source: Tokenizer, target: Tokenizer) -> np.ndarray:
    """Ids of one tokenizer to those of another, through text: `[n]` to `[m]` int32.

    Texts that BOS or EOS part stay parted, by the target's EOS; at the very ends they vanish.
    """
    special = np.isin(tokens, (source.bos_id, source.eos_id))
    cuts = np.flatnonzero(special)
    parts = np.split(tokens, np.unique(np.concatenate([cuts, cuts + 1])))
    texts = [
        source.decode(part)
        for part in parts
        if len(part) and not np.isin(part[0], (source.bos_id, source.eos_id))
    ]
    pieces: list[np.ndarray] = []
    for ids in target.encode_batch(texts):
        pieces += [np.array([target.eos_id], np.int32), ids] if pieces else [ids]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)


def first_document(tokens: np.ndarray, bos_id: int, eos_id: int, given: int = 0) -> np.ndarray:
    """`tokens: [n]` up to and with the first EOS that has text before it; all of them if there is none.

    GPT-2 has one token for BOS and EOS, so a text may begin with it. An EOS among the first `given` tokens,
    a prompt, ends nothing.
    """
    special = (tokens == eos_id) | (tokens == bos_id)
    later = np.arange(len(tokens)) >= given
    ends = np.flatnonzero((tokens == eos_id) & (np.cumsum(~special) > 0) & later)
    return tokens[: ends[0] + 1] if len(ends) else tokens


def check_vocabulary(network: CausalNetwork, texts: Sequence[np.ndarray]) -> None:
    """Raises `ConfigError` if a token is none of the judge's."""
    highest = max((int(text.max()) for text in texts if len(text)), default=0)
    lowest = min((int(text.min()) for text in texts if len(text)), default=0)
    size = network.config.vocab_size
    wrong = highest if highest >= size else lowest
    require(
        lowest >= 0 and highest < size,
        f"The texts hold token {wrong}, which the judge does not have: its vocabulary has {size}.",
    )
