"""From documents to sequences of equal length."""

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from sdtt_jax.data.normalize import NORMALIZERS, PROMPT_END
from sdtt_jax.data.reading import BadInputError
from sdtt_jax.data.tokenizer import Tokenizer
from sdtt_jax.errors import DataError
from sdtt_jax.ops.sequence_kinds import Sequences

_DOCUMENTS_AT_ONCE = 256
# A tokenizer takes many times as much memory as the text.
_CHARACTERS_AT_ONCE = 2**20
# Before a single space or line end GPT-2's pre-tokenizer begins a new word, whatever the script.
_BETWEEN_WORDS = re.compile(r"(?<=\S)(?=[ \n]\S)")
# Why a text must not hold a special token.
_NO_MASK = "which no model of masked text can predict"
_ENDS = "which ends a text here: what follows it would never be learnt"


def _raise(error: BadInputError) -> None:
    raise error


def encode_documents(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    kind: str = "packed",
    length: int | None = None,
    refuse: Callable[[BadInputError], None] = _raise,
) -> Iterator[np.ndarray]:
    """Encodes documents: int32 ids `[n]` of each, in order; BOS separates a prompt from its completion.

    With GPT-2's vocabulary, or one of characters, a document of more than two million characters is encoded
    in stretches. The ids are the same, and memory stays bounded.

    Args:
      tokenizer: the vocabulary; it normalises what is not normalised yet.
      texts: the documents. For the kind "prompted" each is a pair, with one `PROMPT_END` in it; for other
        kinds that is a character like any other.
      kind: the kind of the sequences that they are for, one of `sequence_kinds.KINDS`.
      length: the most tokens that a pair may have, its BOS and EOS included; None for any number.
      refuse: called with the fault of a document in its place in the order: one that spells MASK, a pair that
        is longer or whose own BOS or EOS would move the end of its prompt or completion, or a text of the
        kind "padded" that goes on after an EOS. Such a document is left out if it returns.
    """
    encoded: Iterator[np.ndarray | BadInputError]
    if kind == "prompted":
        encoded = (_encode_pair(tokenizer, text, length) for text in texts)
    else:
        pairs = _encode_texts(tokenizer, texts)
        encoded = (_without_special(tokenizer, text, ids, kind) for text, ids in pairs)
    for ids in encoded:
        if isinstance(ids, BadInputError):
            refuse(ids)
        else:
            yield ids


def _encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Each text with its ids `[n]`; they are encoded many at a time, and very long ones in stretches."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        long = len(text) > 2 * _CHARACTERS_AT_ONCE
        if not long:
            waiting.append(text)
            size += len(text)
        if long or len(waiting) >= _DOCUMENTS_AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield from zip(waiting, tokenizer.encode_batch(waiting), strict=True)
            waiting, size = [], 0
        if long:
            # Normalised as a whole: on its own a stretch would lose the space at its beginning.
            whole = NORMALIZERS[tokenizer.normalize](text)
            parts = [_encode_stretch(tokenizer, s) for s in _stretches(tokenizer, whole)]
            yield text, np.concatenate(parts)
    yield from zip(waiting, tokenizer.encode_batch(waiting), strict=True)


def _without_special(
    tokenizer: Tokenizer, text: str, ids: np.ndarray, kind: str
) -> np.ndarray | BadInputError:
    """The ids, or a fault if they hold a special token where none may be.

    Published vocabularies spell special tokens. In "padded" sequences the first EOS ends the text, so an EOS
    at the very end of the text is dropped, because `ended` adds it again.
    """
    if tokenizer.mask_id in ids:
        name, token, why = "MASK", tokenizer.mask_id, _NO_MASK
    elif kind == "padded" and tokenizer.eos_id in ids[:-1]:
        name, token, why = "EOS", tokenizer.eos_id, _ENDS
    else:
        return ids[:-1] if kind == "padded" and tokenizer.eos_id in ids[-1:] else ids
    at = int(np.argmax(ids == token))
    behind = f"after {tokenizer.decode(ids[max(0, at - 8) : at])!r}, " if at else ""
    return BadInputError(
        f"{name} in a text",
        f"The text {text[:60]!r} spells {name}, token {token}, {behind}{why}; take it out, leave the "
        "text out of the file, or, for training, let data.skip_bad skip it.",
    )


def _encode_pair(tokenizer: Tokenizer, text: str, length: int | None) -> np.ndarray | BadInputError:
    """Encodes a prompt and its completion as `model.prompts` does, so that sampling sees the ids of training.

    Unknown characters are unk, as in other documents, even where nothing else is left of a part.
    Published vocabularies spell special tokens. Of those, an EOS in the prompt, or at the very end of the
    completion, changes nothing (see `ops.sequences.arrange`); others are returned as a fault.
    """
    parts = text.split(PROMPT_END)
    if len(parts) != 2:
        raise _no_prompt()
    prompt, completion = parts
    before, behind = map(tokenizer.encode_piece, parts)
    behind = behind[:-1] if tokenizer.eos_id in behind[-1:] else behind  # `ended` adds it again
    kind, remedy = "BOS or EOS in a pair", "take it out, leave the pair out of the file"
    fault, size = "", len(before) + len(behind) + 2
    if tokenizer.mask_id in before or tokenizer.mask_id in behind:
        kind = "MASK in a text"
        spelt = f"MASK, token {tokenizer.mask_id}, {_NO_MASK}"
        fault = f"The prompt {prompt!r:.60} or its completion spells {spelt}"
    elif tokenizer.bos_id in before:
        fault = (
            f"The prompt {prompt!r:.60} spells BOS, token {tokenizer.bos_id}, which marks the end of the "
            "prompt"
        )
    elif tokenizer.eos_id in behind:
        fault = f"The completion {completion!r:.60} spells EOS, token {tokenizer.eos_id}, {_ENDS}"
    elif length is not None and size > length:
        kind, remedy = "pair too long", "take a larger length, leave the pair out of the file"
        fault = (
            f"The prompt {prompt!r:.60} and its completion have {size} tokens with BOS and EOS, more than "
            f"data.length={length}"
        )
    if fault:
        return BadInputError(kind, f"{fault}; {remedy}, or let data.skip_bad skip it.")
    return np.concatenate([before, np.array([tokenizer.bos_id], np.int32), behind])


def _encode_stretch(tokenizer: Tokenizer, stretch: str) -> np.ndarray:
    [ids] = tokenizer.encode_normalized([stretch])
    return ids


def ended(tokens: np.ndarray, length: int, sequences: Sequences) -> np.ndarray:
    """A document's ids `[n]` with EOS after them, for the stream that `cut` cuts.

    For the kinds with padding, EOS fills the document's last sequence, so that each document has one or
    several whole sequences of its own. A document that already fills them gets no EOS: its end is not
    marked, as in the inner sequences of a long one, since one EOS more would begin another sequence, an empty
    text. A document of the kind "prompted" must have a prompt; `encode_documents` has checked that it fits
    into one sequence, with EOS. `length` and `sequences` are as for `pack`.
    """
    if sequences.kind == "prompted" and sequences.bos_id not in tokens:
        raise _no_prompt()
    more = 1
    if sequences.has_padding:
        more = -len(tokens) % length if len(tokens) else length
    return np.concatenate([tokens, np.full(more, sequences.eos_id, tokens.dtype)])


def text_ends(rows: np.ndarray, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are the EOS of a document, and which are padding: bool, the shape of `rows`.

    The rows are `[n, length]` sequences without the BOS and EOS around wrapped ones.
    """
    ends = rows == sequences.eos_id
    if not sequences.has_padding:
        return ends, np.zeros_like(ends)
    if sequences.kind == "prompted":
        ends &= _before(rows == sequences.bos_id) > 0
    padding = _before(ends) > 0
    return ends & ~padding, padding


def _before(where: np.ndarray) -> np.ndarray:
    """The number of True entries before each position of a row."""
    return np.cumsum(where, axis=1) - where


def _no_prompt() -> DataError:
    return DataError(
        "A document has no prompt; data.sequences='prompted' needs 20 or more lines of JSON, with "
        "the two fields that data.text_field names."
    )


def _stretches(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """Cuts a normalised text into one or more parts whose ids, joined, are those of the whole text."""
    kind, start = tokenizer.config.kind, 0
    anywhere = kind == "sentencepiece" and tokenizer.config.model_type == "char"
    while (kind == "gpt2" or anywhere) and len(text) - start > _CHARACTERS_AT_ONCE:
        stop = start + _CHARACTERS_AT_ONCE
        if anywhere:
            # SentencePiece makes one unk of a whole run of unknown characters, so no cut lies within a run.
            while stop < len(text) and tokenizer.unk_id in _encode_stretch(tokenizer, text[stop]):
                stop += 1
        else:
            found = _BETWEEN_WORDS.search(text, stop)
            stop = found.start() if found else len(text)
        yield text[start:stop]
        start = stop
    if start < len(text) or not start:
        yield text[start:]


def chunk_length(length: int, sequences: Sequences) -> int:
    """How many tokens of the stream a sequence of `length` tokens holds, BOS and EOS around them excluded."""
    return length - 2 if sequences.wrap else length


def pack(
    documents: Iterable[np.ndarray], length: int, sequences: Sequences
) -> Iterator[np.ndarray]:
    """Joins documents with EOS after each, as `ended` adds it, and cuts the stream into sequences `[length]`.

    With `sequences.wrap`, every sequence is `[BOS] chunk [EOS]` around `length - 2` tokens of the stream, as
    MDLM (arXiv 2406.07524) and SDTT train on; otherwise the sequences are the chunks themselves. The rest of
    the stream that does not fill a sequence is left out. An EOS within a chunk marks the end of a document,
    and nothing else, unless texts themselves can contain EOS (with a published model's tokenizer): a reader
    finds the boundaries of documents from the tokens alone.

    Args:
      documents: ids of each document, `[n]`.
      length: tokens in a sequence.
      sequences: their kind, whether they are wrapped, and the ids of BOS and EOS.
    """
    yield from cut((ended(ids, length, sequences) for ids in documents), length, sequences)


def cut(stream: Iterable[np.ndarray], length: int, sequences: Sequences) -> Iterator[np.ndarray]:
    """Cuts a stream of ids, in arrays `[n]` of any length, into sequences `[length]`, as `pack` does."""
    size, ends = chunk_length(length, sequences), (sequences.bos_id, sequences.eos_id)
    waiting: list[np.ndarray] = []
    count = 0
    for tokens in stream:
        waiting.append(tokens)
        count += len(tokens)
        if count < size:
            continue
        joined = np.concatenate(waiting)
        whole = count // size * size
        rows = joined[:whole].reshape(-1, size)
        if sequences.wrap:
            rows = np.pad(rows, ((0, 0), (1, 1)), constant_values=((0, 0), ends))
        yield from rows
        waiting, count = [joined[whole:]], count - whole
