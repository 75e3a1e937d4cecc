"""The given parts of texts that a model completes: prompts, texts with gaps, ends of texts."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.data import Tokenizer
from sdtt_jax.data.normalize import without_traces_of_files
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.sequences import ends_of_texts

GAP = re.compile(r"\[(\d+)\]")
# Malformed gaps, such as "[7 ]" or "[-1]".
_ALMOST = re.compile(r"\[\s*[-+]?\d[\d\s.,]*\]")
Texts = str | Sequence[str] | None


def given_tokens(
    tokenizer: Tokenizer,
    length: int,
    prompt: str | None = None,
    infill: str | None = None,
    mark: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The given part of one text: `(tokens, fixed)`, `[length]` int32 and bool.

    Args:
      tokenizer: of the model.
      length: tokens per sequence.
      prompt: text at the start.
      infill: text with gaps `[n]` of n tokens each; positions after its end are free.
      mark: a token that ends a prompt; None for none. Unless the text itself holds it, it follows `prompt`,
        and precedes `infill`, whose prompt is empty.

    Raises:
      ConfigError: both are given, or they leave the model nothing to write; or a malformed gap would vanish,
        because the vocabulary has no brackets.
    """
    require(prompt is None or infill is None, "Give a prompt or an infill, not both.")
    tokens, fixed = np.zeros(length, np.int32), np.zeros(length, bool)
    parts = GAP.split(infill) if infill is not None else [prompt or ""]
    for part in parts[::2] if infill is not None else ():
        _check_gaps(tokenizer, part)
    texts = [ids for ids, _ in _encoded(tokenizer, parts)]
    if mark is not None and not any(mark in ids for ids in texts):
        if infill is None:
            texts[-1] = np.append(texts[-1], np.int32(mark))
        else:
            texts[0] = np.insert(texts[0], 0, mark)
    # Python refuses to convert thousands of digits.
    gaps = [int(part[:99]) for part in parts[1::2]]
    needed = sum(map(len, texts)) + sum(gaps)
    name = "prompt" if infill is None else "infill"
    require(
        needed <= length,
        f"The {name} has {needed} tokens, but the model's sequences only {length}; shorten it.",
    )
    require(
        needed < length or sum(gaps) > 0,
        f"The {name} has {needed} tokens, as many as the model's sequences, which leaves nothing to write; "
        "shorten it.",
    )
    position = 0
    for ids, gap in zip(texts, [*gaps, 0], strict=True):
        tokens[position : position + len(ids)] = ids
        fixed[position : position + len(ids)] = True
        position += len(ids) + gap
    return tokens, fixed


def _encoded(tokenizer: Tokenizer, parts: Sequence[str]) -> Iterator[tuple[np.ndarray, bool]]:
    """Encodes the texts of `parts` (text, gap, text, …); yields ids, and whether nothing precedes them."""
    begins = True
    for part, gap in itertools.zip_longest(parts[::2], parts[1::2], fillvalue=""):
        ids = tokenizer.encode_part(part, behind=not begins)
        yield ids, begins
        begins = begins and not len(ids) and not gap.strip("0")


def _check_gaps(tokenizer: Tokenizer, text: str) -> None:
    """Refuses a malformed gap such as "[7 ]", unless the vocabulary has brackets: it may then be text."""
    for slip in _ALMOST.findall(text):
        require(
            "[" in tokenizer.decode(tokenizer.encode_piece(slip, ConfigError)),
            f"infill: {slip!r} is no gap, and the vocabulary has no brackets; a gap is a whole number in "
            "brackets without spaces, such as [7].",
        )


def with_prompt_end(prompts: np.ndarray, mark: int | None) -> np.ndarray:
    """Appends the token that ends a prompt to prompts of one length: `[texts, n]` int32.

    Args:
      prompts: `[texts, length]` int32. If all of them already hold the mark, they stay as they are.
      mark: the token, as in `given_tokens`; None for none.

    Raises:
      ConfigError: some prompts hold the mark, and others do not.
    """
    if mark is None:
        return prompts
    ended = (prompts == mark).any(axis=1)
    if len(ended) and ended.all():
        return prompts
    require(
        not ended.any(),
        f"{ended.sum()} of {len(ended)} prompts hold the token that ends a prompt, {mark}; give it to all of "
        "them, or to none.",
    )
    return np.pad(prompts, ((0, 0), (0, 1)), constant_values=mark)


def reading_notes(
    tokenizer: Tokenizer, prompts: Iterable[str], infills: Iterable[str]
) -> Iterator[str]:
    """Warnings: texts that normalisation changes, infills without a gap, prompts with one."""
    for name, texts in (("prompt", prompts), ("infill", infills)):
        for text in dict.fromkeys(texts):
            parts = GAP.split(text) if name == "infill" else [text]
            if name == "infill" and len(parts) == 1:
                yield f"The infill {text!r} has no gap; [12] leaves 12 tokens to the model."
            read = _encoded(tokenizer, parts)
            parts[::2] = [tokenizer.decode(ids, behind=not begins) for ids, begins in read]
            parts[1::2] = [f"[{part}]" for part in parts[1::2]]
            # No warning about line ends and a byte-order mark, which nobody types.
            if (shown := "".join(parts)) != without_traces_of_files(text):
                yield f"The {name} {text!r} is read as {shown!r}."
            if name == "prompt" and GAP.search(text):
                yield f"The prompt {text!r} has no gaps: [12] leaves tokens to the model in --infill alone."


def given_batch(
    tokenizer: Tokenizer,
    length: int,
    num_samples: int,
    prompt: Texts = None,
    infill: Texts = None,
    mark: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`given_tokens` of many texts: `[num_samples, length]` int32 and bool.

    Args:
      tokenizer: of the model.
      length: tokens per sequence.
      num_samples: how many.
      prompt, infill: one text for all of them, or one for each, of any lengths.
      mark: as `given_tokens` takes it.

    Raises:
      ConfigError: a text has both a prompt and an infill, or leaves the model nothing to write; or a list
        does not hold one text for each sample.
    """

    def each(name: str, texts: Texts) -> list[str | None]:
        if texts is None or isinstance(texts, str):
            return [texts] * num_samples
        # A set has no order, and the items of bytes are numbers.
        listed = isinstance(texts, Sequence | np.ndarray) and not isinstance(texts, bytes)
        listed = listed and np.ndim(texts) > 0
        found: list[Any] = list(texts) if listed else [texts]
        for text in found:
            if not (text is None or isinstance(text, str)):
                raise ConfigError(f"{name} must be a text or a list of texts, not {text!r:.60}.")
        if len(found) != num_samples:
            raise ConfigError(
                f"There are {len(found)} texts in {name} for num_samples={num_samples}; give one for all, or "
                "one for each."
            )
        return found

    pairs = list(zip(each("prompt", prompt), each("infill", infill), strict=True))
    known = {pair: given_tokens(tokenizer, length, *pair, mark) for pair in set(pairs)}
    rows = [known[pair] for pair in pairs]
    return np.stack([tokens for tokens, _ in rows]), np.stack([fixed for _, fixed in rows])


def with_length(
    tokens: np.ndarray, fixed: np.ndarray, num_tokens: int, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fixes the length of texts: `num_tokens` after the last given token stay free, and the rest is EOS.

    The first EOS ends the text, and the others are padding.

    Args:
      tokens: `[texts, length]` int32.
      fixed: `[texts, length]` bool, what was given.
      num_tokens: free positions before the EOS.
      eos_id: of the tokenizer.

    Returns:
      `tokens` and `fixed` with these EOS added.

    Raises:
      ConfigError: so many tokens do not follow the given text of each row.
    """
    length = tokens.shape[1]
    last = np.where(fixed.any(axis=1), length - 1 - fixed[:, ::-1].argmax(axis=1), -1)
    room = length - 1 - int(last.max())
    require(
        num_tokens <= room,
        f"num_tokens={num_tokens}, but only {room} of the {length} positions follow the given text; "
        f"{f'take at most {room}' if room else 'leave num_tokens out'}.",
    )
    ended = np.arange(length) > last[:, None] + num_tokens
    return np.where(ended, np.int32(eos_id), tokens), fixed | ended


def text_lengths(tokens: np.ndarray, fixed: np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
    """Number of tokens of each text up to and including its first EOS, or all if it has none: `[texts]`.

    `ops.sequences.ends_of_texts` defines which EOS end a text.

    Args:
      tokens: `[texts, length]` int32.
      fixed: `[texts, length]` bool, what was given.
      bos_id, eos_id: of the tokenizer.
    """
    end = ends_of_texts(tokens, ~fixed, bos_id, eos_id)
    return np.asarray((np.cumsum(end, axis=1) - end == 0).sum(axis=1))


def cut_at_eos(tokens: np.ndarray, fixed: np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
    """Ends texts at their first EOS: all that follows becomes EOS, which decodes to nothing.

    Args:
      tokens: `[texts, length]` int32.
      fixed: `[texts, length]` bool, what was given.
      bos_id, eos_id: of the tokenizer.
    """
    lengths = text_lengths(tokens, fixed, bos_id, eos_id)
    return np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, np.int32(eos_id))
