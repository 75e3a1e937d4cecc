"""Prefixes and their continuations: as text, as ids, and as rows of tokens."""

import dataclasses
import sys
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sdtt_jax.config import given, require, whole
from sdtt_jax.data import Tokenizer
from sdtt_jax.data.normalize import without_traces_of_files
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import Denoiser
from sdtt_jax.networks.llama import LlamaDenoiser
from sdtt_jax.ops.tokens import as_ids

MULTIPLE = 32
# Denoisers that can be confined to a text, so that they do not see what fills its row, and the longest row
# that is filled for them: a GPU then holds the scores of all heads at once.
CONFINED = (Denoiser, LlamaDenoiser)
MOST_FILLED = 512


@dataclasses.dataclass(frozen=True)
class Cloze:
    """A prefix and its suffix. Joined they are the text; a space between them belongs to the suffix."""

    prefix: str
    suffix: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """Several endings, one of which is right."""

    context: str | tuple[str, ...]  # what all endings continue, or one context for each ending
    endings: tuple[str, ...]  # the texts to choose from; a space before them belongs to them
    answer: int  # place of the right one

    def __post_init__(self) -> None:
        whole(0, self, "answer")
        require(
            self.answer < len(self.endings),
            f"answer={self.answer} is not one of the {len(self.endings)} endings.",
        )
        require(
            isinstance(self.context, str) or len(self.context) == len(self.endings),
            f"{len(self.context)} contexts for {len(self.endings)} endings; give one for each.",
        )

    def clozes(self) -> list[Cloze]:
        """One cloze for every ending, after its context."""
        contexts = (
            [self.context] * len(self.endings) if isinstance(self.context, str) else self.context
        )
        return [Cloze(*pair) for pair in zip(contexts, self.endings, strict=True)]


class Continuation(NamedTuple):
    """A cloze in ids, without BOS and EOS: two arrays `[n]` int32, the suffix not empty."""

    prefix: np.ndarray
    suffix: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """How a continuation becomes a row."""

    # Put before the prefix; None for nothing. A causal network needs it.
    bos_id: int | None = None
    # Put, unmasked, after the suffix; None for nothing. For denoisers only.
    eos_id: int | None = None
    # Longest row; a prefix that is too long loses its beginning. None for no limit.
    max_length: int | None = None
    # Rows of up to `most_filled` tokens are padded to a multiple of this, or to `max_length`, so that fewer
    # lengths are compiled. A causal network does not see the padding, nor do `CONFINED` denoisers up to
    # `MOST_FILLED`. Other denoisers see it as masked text after the EOS, which changes their values a little;
    # with 1 every text is scored at its own length, as in the reference.
    multiple: int = 1
    # Put between prefix and suffix, also after an empty prefix; None for nothing.
    mark_id: int | None = None
    most_filled: int | None = None  # None for no limit

    def __post_init__(self) -> None:
        whole(0, self, *given(self, "bos_id", "mark_id", "eos_id"))
        whole(1, self, "multiple", *given(self, "max_length", "most_filled"))

    def room(self, suffix: np.ndarray) -> int:
        """How many tokens of a prefix fit before a suffix; below 0 if not even the suffix does."""
        around = len(self.opening(suffix[:0])) + (self.eos_id is not None)
        return (self.max_length or sys.maxsize) - around - len(suffix)

    def opening(self, prefix: np.ndarray) -> np.ndarray:
        """A row up to its suffix, from the ids of the prefix: `[n]` int32."""
        before = [] if self.bos_id is None else [self.bos_id]
        behind = [] if self.mark_id is None else [self.mark_id]
        return np.concatenate([before, prefix, behind]).astype(np.int32)


def layout_of(model: Model | CausalModel) -> RowLayout:
    """The layout that a model's rows have: the special tokens around its texts.

    A denoiser's texts stand between BOS and an unmasked EOS, as the reference scores them. A causal network's
    stand after BOS, in a row of one token more than it reads: the last is predicted and never read. Rows are
    padded, so that few lengths are compiled, if the network does not see the padding.
    For a model of instructions BOS follows the prefix; only a causal network also has it before the prefix.
    """
    tokenizer, mark = model.text_tokenizer, model.prompt_end
    if isinstance(model, CausalModel):
        most, multiple = model.context + 1, MULTIPLE
        return RowLayout(tokenizer.bos_id, max_length=most, multiple=multiple, mark_id=mark)
    bos_id = tokenizer.bos_id if mark is None else model.first_token
    multiple = MULTIPLE if type(model.denoiser) in CONFINED else 1
    length = model.config.length
    return RowLayout(bos_id, tokenizer.eos_id, length, multiple, mark, MOST_FILLED)


def encode(
    tokenizer: Tokenizer, clozes: Sequence[Cloze], mark: int | None = None
) -> list[Continuation]:
    """Encodes texts, and cuts the ids where the prefix ends.

    The two are read as one text of a file (`without_traces_of_files`). Spaces at the end of a prefix are
    moved to its suffix. The two are encoded as one text if its ids begin with those of the prefix, and
    separately otherwise, so that words get their usual tokens.

    Args:
      tokenizer: of the model.
      clozes: the texts.
      mark: a token between prefix and suffix, after which a text begins, as in training; None for none.
    """
    clozes = [_as_in_files(cloze) for cloze in clozes]
    stripped = [cloze.prefix.rstrip() for cloze in clozes]
    whole = tokenizer.encode_batch([cloze.prefix + cloze.suffix for cloze in clozes])
    prefixes = tokenizer.encode_batch(stripped)
    found = []
    for cloze, text, start, ids in zip(clozes, stripped, prefixes, whole, strict=True):
        if np.array_equal(ids[: len(start)], start):
            suffix = ids[len(start) :]
        else:
            behind = mark is None and len(start) > 0
            suffix = tokenizer.encode(cloze.prefix[len(text) :] + cloze.suffix, behind=behind)
        require(
            len(suffix) > 0,
            f"the suffix {cloze.suffix!r} has no tokens; there is nothing to score.",
        )
        for part, tokens in ((cloze.prefix, start), (cloze.suffix, suffix)):
            require(tokenizer.reads(part, tokens), f"{part!r} {tokenizer.reads_nothing}.")
        found.append(Continuation(start, suffix))
    return found


def _as_in_files(cloze: Cloze) -> Cloze:
    prefix, text = (
        without_traces_of_files(part) for part in (cloze.prefix, cloze.prefix + cloze.suffix)
    )
    return Cloze(prefix, text[len(prefix) :])


class Rows(NamedTuple):
    """Rows of one length, on the host or inside a compiled function."""

    tokens: Any  # `[rows, length]` int32
    # start, stop: `[rows]` int32, where the suffix begins and ends.
    start: Any
    stop: Any
    item: Any  # `[rows]` int32, place among the items
    # `[rows]` uint32, made from the ids; equal rows have equal noise, wherever they stand.
    digest: Any
    masking: Any  # `[rows]` int32, which masking of the item


def contexts_cut(items: Sequence[Continuation], layout: RowLayout) -> int:
    """How many items have a prefix that loses its beginning, because a row has no room for it."""
    return sum(len(item.prefix) > layout.room(item.suffix) for item in items)


def lay_out(
    items: Sequence[Continuation], layout: RowLayout, fill: int, num_ids: int | None = None
) -> list[Rows]:
    """Makes one row of each item, and groups rows of equal length.

    Args:
      items: at least one.
      layout: what stands around them.
      fill: the id after texts that are shorter than their row.
      num_ids: how many ids there are; None is `fill`, a denoiser's MASK.

    Raises:
      ConfigError: no items, an id that does not exist, an empty suffix, or one that exceeds
        `layout.max_length`.
    """
    require(len(items) > 0, "no items: there is nothing to score.")
    behind = [] if layout.eos_id is None else [layout.eos_id]
    groups: dict[int, list[tuple[np.ndarray, int, int, int]]] = {}
    for index, (prefix, suffix) in enumerate(items):
        require(len(suffix) > 0, f"item {index} has no suffix; there is nothing to score.")
        for part in (prefix, suffix):
            as_ids(part, fill if num_ids is None else num_ids, f"item {index}")
        room = layout.room(suffix)
        require(
            room >= 0,
            f"the suffix of item {index} has {len(suffix)} tokens, too many for rows of "
            f"max_length={layout.max_length}.",
        )
        opening = layout.opening(prefix[max(0, len(prefix) - room) :])
        tokens = np.concatenate([opening, suffix, behind]).astype(np.int32)
        start = len(opening)
        filled = layout.most_filled is None or len(tokens) <= layout.most_filled
        multiple = layout.multiple if filled else 1
        length = -(-len(tokens) // multiple) * multiple
        length = min(length, layout.max_length or length)
        groups.setdefault(length, []).append((tokens, start, start + len(suffix), index))
    found = []
    for length, members in sorted(groups.items()):
        table = np.full((len(members), length), fill, np.int32)
        for row, (tokens, *_) in zip(table, members, strict=True):
            row[: len(tokens)] = tokens
        start, stop, item = np.array([member[1:] for member in members], np.int32).T
        digest = [zlib.crc32(tokens.tobytes(), first) for tokens, first, *_ in members]
        found.append(
            Rows(table, start, stop, item, np.array(digest, np.uint32), np.zeros_like(item))
        )
    return found
