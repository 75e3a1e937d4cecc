"""Scores texts of any length with a causal judge, in the tokens of its own tokenizer or of another one."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.causal.nll import next_token_nll
from sdtt_jax.data import Tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.prompts import text_lengths
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.sequences import Sequences, as_read
from sdtt_jax.ops.tokens import as_ids

# Rows are padded to a multiple of this, so that texts of similar length share one compiled program.
WIDTH = 32


class Scores(NamedTuple):
    """The judge's score of each text."""

    nll: np.ndarray  # `[texts]` float64, nats of all scored tokens
    scored: np.ndarray  # `[texts]` int64, how many tokens were scored
    # `[texts]` int64, pieces that the text was cut into because it exceeds the judge's context.
    windows: np.ndarray

    @property
    def per_token(self) -> np.ndarray:
        """`[texts]`, nats per token; 0 where nothing was scored."""
        return self.nll / np.maximum(self.scored, 1)


class ReadTexts(NamedTuple):
    """Texts in the judge's tokens."""

    # The texts in the model's tokens, cut at their ends for ends="cut".
    texts: list[np.ndarray]
    seen: list[np.ndarray]  # the same in the judge's tokens; without a judge `texts` itself
    starts: np.ndarray  # `[texts]`, where in `seen` each prompt ends
    facts: dict[str, Any]  # how the texts were converted, JSON-ready
    prompts: np.ndarray  # `[texts]`, where in `texts` each prompt ends

    @property
    def written(self) -> list[np.ndarray]:
        """`texts` without their prompts."""
        return [text[n:] for text, n in zip(self.texts, self.prompts, strict=True)]


class TextWindows(NamedTuple):
    """Windows of texts as the network reads them."""

    # inputs, targets: `[rows, width]` int32; the state after `inputs[:, i]` predicts `targets[:, i]`.
    inputs: np.ndarray
    targets: np.ndarray
    scored: np.ndarray  # `[rows, width]` bool


def in_judge_tokens(
    judge: CausalModel | None,
    tokens: Sequence[np.ndarray],
    tokenizer: Tokenizer | None,
    ends: str,
    given: int | np.ndarray = 0,
) -> ReadTexts:
    """Converts texts to the judge's tokens.

    Its EOS stands between prompt and continuation where a BOS or EOS does.

    Args:
      judge: if its tokenizer is another one, texts are decoded and encoded again; None for no judge.
      tokens: int32 tokens `[n_i]` of each text.
      tokenizer: of these tokens; None if only the tokens are known.
      ends: "keep", or "cut" to end each text at its first EOS.
      given: tokens at the start of the texts, or of each, that are a prompt.
    """
    texts = [np.asarray(row, np.int32) for row in tokens]
    prompts = np.broadcast_to(given, len(texts))
    facts: dict[str, Any] = {}
    if tokenizer is not None:
        special = tokenizer.bos_id, tokenizer.eos_id
        lengths = [
            int(text_lengths(t[None], (np.arange(len(t)) < n)[None], *special)[0])
            for t, n in zip(texts, prompts, strict=True)
        ]
        early = sum(n < len(text) for n, text in zip(lengths, texts, strict=True))
        facts |= {"texts_that_end_early": early, "ends": ends}
        if ends == "cut":
            texts = [text[:n] for n, text in zip(lengths, texts, strict=True)]
    if judge is None:
        return ReadTexts(texts, texts, prompts, facts, prompts)
    seen, starts, theirs = texts, prompts, judge.tokenizer
    facts["retokenised"] = False
    if tokenizer is not None and theirs is not None and not same_tokens(tokenizer, theirs):
        facts["retokenised"] = True
        convert = functools.partial(retokenise, source=tokenizer, target=theirs)
        # Prompt and continuation are converted separately: a token that spans both would count as one of
        # them.
        parts, end = [], np.int32(theirs.eos_id)
        for t, n in zip(texts, prompts, strict=True):
            # A continuation goes on with the prompt's text unless that ends in BOS or EOS, or it begins so.
            begins = n == 0 or t[n - 1] in special
            prompt, rest = convert(t[:n]), convert(t[n:], behind=not begins)
            if len(prompt) and len(rest) and begins:
                prompt = np.append(prompt, end)
            elif len(prompt) and len(rest) and t[n] in special:
                rest = np.insert(rest, 0, end)
            parts.append((prompt, rest))
        starts = np.array([len(prompt) for prompt, _ in parts])
        seen = [np.concatenate(both) for both in parts]
    return ReadTexts(texts, seen, starts, facts, prompts)


def score_texts(
    model: CausalModel,
    texts: Sequence[np.ndarray],
    *,
    batch_size: int,
    first_token: str = "scored",
    given: int | np.ndarray = 0,
) -> Scores:
    """Negative log-likelihood of texts of any lengths.

    A text longer than the judge's context is cut into windows, each read on its own. A judge of `documents`
    reads a text as in training: what follows an EOS is a text of its own, after BOS.

    Args:
      model: the judge.
      texts: int32 tokens `[n_i]` of the judge's vocabulary.
      batch_size: texts at once.
      first_token: "scored" after BOS, or "given": read without BOS and not scored.
      given: tokens at the start of the texts, or of each, that are read but not scored (a prompt).

    Raises:
      ConfigError: BOS is needed but not known, a token is not in the judge's vocabulary, or it is a model of
        every n-th token.
    """
    model.require_whole_texts()
    for index, text in enumerate(texts):
        as_ids(text, model.config.vocab_size, f"text {index} for the judge")
    rows, owners = make_rows(
        texts, bos_id=bos_of(model, first_token), given=given, limit=model.context
    )
    nll = token_nll(model, rows, batch_size)
    total, count = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    np.add.at(total, owners, nll.sum(axis=1))
    np.add.at(count, owners, rows.scored.sum(axis=1))
    return Scores(total, count, np.bincount(owners, minlength=len(texts)))


def reading_of(model: CausalModel) -> dict[str, Any]:
    """What an item's inputs say of how a judge reads sequences: nothing, unless each text on its own."""
    kind = model.facts.get("sequences")
    # Earlier versions read EOS as a token for MAUVE.
    return {"sequences": kind, "reads_eos": False} if kind == "documents" else {}


def bos_of(model: CausalModel, first_token: str) -> int | None:
    """The token before a text: BOS, or None if the first token is "given"."""
    if first_token == "given":
        return None
    if model.tokenizer is None:
        raise ConfigError(
            f"{model.facts['path']} has no tokenizer, so its BOS is unknown; add --first_token=given."
        )
    return model.tokenizer.bos_id


def make_rows(
    texts: Sequence[np.ndarray],
    *,
    bos_id: int | None,
    given: int | np.ndarray = 0,
    limit: int | None = None,
) -> tuple[TextWindows, np.ndarray]:
    """Cuts texts into rows of equal width; also returns the number of each row's text, `[rows]` int64.

    Padding is at the end, where it does not influence a causal network's earlier states; it is not scored.

    Args:
      texts: int32 tokens `[n_i]`.
      bos_id: put before the first token, so that it is scored; None if the first token is given.
      given: tokens at the start of the texts, or of each, that are not scored.
      limit: the most positions of a row; None for no limit.
    """
    pieces, owners = [], []
    before = np.array([] if bos_id is None else [bos_id], np.int32)
    prompts = np.broadcast_to(given, len(texts))
    for owner, text in enumerate(texts):
        text = np.concatenate([before, np.asarray(text, np.int32)])
        first = int(prompts[owner]) + len(before)
        step = limit or max(len(text) - 1, 1)
        for start in range(0, max(len(text) - 1, 1), step):
            window = text[start : start + step + 1]
            pieces.append((window, max(first - start, 1)))
            owners.append(owner)
    longest = max((len(window) - 1 for window, _ in pieces), default=1)
    width = -(-max(longest, 1) // WIDTH) * WIDTH
    width = min(width, limit) if limit else width
    shape = len(pieces), width
    rows = TextWindows(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool))
    for row, (window, first) in enumerate(pieces):
        size = max(len(window) - 1, 0)
        rows.inputs[row, :size], rows.targets[row, :size] = window[:-1], window[1:]
        rows.scored[row, first - 1 : size] = True
    return rows, np.asarray(owners, np.int64)


def token_nll(model: CausalModel, rows: TextWindows, batch_size: int) -> np.ndarray:
    """-log p of every token of `make_rows`: `[rows, width]` float64, nats; 0 where it is not scored."""
    function = functools.partial(_token_nll, model.network, model.sequences)
    return np.asarray(map_batches(function, model.params, rows, batch_size))


@functools.partial(jax.jit, static_argnames=("network", "sequences"))
def _token_nll(
    network: CausalNetwork,
    sequences: Sequences | None,
    params: Any,
    index: jax.Array,
    rows: TextWindows,
) -> jax.Array:
    del index
    inputs, targets, scored = map(jnp.asarray, rows)
    read, segments = as_read(inputs, sequences)
    return next_token_nll(network, params, read, targets, scored, segments)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give every text the same ids."""
    return one.digest == other.digest and one.normalize == other.normalize


def retokenise(
    tokens: np.ndarray, source: Tokenizer, target: Tokenizer, *, behind: bool = False
) -> np.ndarray:
    """Converts ids of one tokenizer to those of another through text: `[n]` to `[m]` int32.

    Texts separated by BOS or EOS are separated by the target's EOS; at either end BOS and EOS are dropped.
    With `behind`, the first text continues another one, so no leading space is added or dropped.
    """
    special = np.isin(tokens, (source.bos_id, source.eos_id))
    edges = np.flatnonzero(np.diff(special)) + 1
    runs = zip(np.split(tokens, edges), np.split(special, edges), strict=True)
    behind = behind and len(tokens) > 0 and not special[0]
    found = [run for run, between in runs if len(run) and not between[0]]
    texts = [source.decode(run, behind=behind and n == 0) for n, run in enumerate(found)]
    rows = target.encode_batch(texts)
    if behind:
        rows[0] = target.encode(texts[0], behind=True)
    end = np.array([target.eos_id], np.int32)
    pieces = [part for ids in rows for part in (end, ids)]
    return np.concatenate(pieces[1:]) if texts else np.zeros(0, np.int32)
