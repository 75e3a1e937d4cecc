"""From documents to sequences of equal length."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from sdtt_jax.data.normalize import PROMPT_END
from sdtt_jax.data.tokenizer import Tokenizer
from sdtt_jax.errors import DataError
from sdtt_jax.ops.sequences import Sequences

_DOCUMENTS_AT_ONCE = 256


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Each document's int32 ids `[n]`, in order; between a prompt and what follows it stands BOS."""
    waiting = iter(texts)
    while some := list(itertools.islice(waiting, _DOCUMENTS_AT_ONCE)):
        if any(PROMPT_END in text for text in some):
            yield from (_encode_pair(tokenizer, text) for text in some)
        else:
            yield from tokenizer.encode_batch(some)


def _encode_pair(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """As `model.prompts` encodes what is given, so that a prompt has the ids that it had in training."""
    parts = [tokenizer.encode_part(part) for part in text.split(PROMPT_END)]
    bos = np.array([tokenizer.bos_id], np.int32)
    return np.concatenate([parts[0], *(x for part in parts[1:] for x in (bos, part))])


def packed(
    documents: Iterable[np.ndarray], length: int, sequences: Sequences
) -> Iterator[np.ndarray]:
    """`pack_each` or `pack`, as the kind of sequences has it; arguments as of `pack_each`."""
    if sequences.kind in ("padded", "prompted"):
        return pack_each(documents, length, sequences)
    bos_id, eos_id = sequences.bos_id, sequences.eos_id
    return pack(documents, length=length, wrap=sequences.wrap, bos_id=bos_id, eos_id=eos_id)


def pack_each(
    documents: Iterable[np.ndarray], length: int, sequences: Sequences
) -> Iterator[np.ndarray]:
    """One document for each sequence `[length]`, EOS behind it and as padding.

    Of "padded" documents those that are longer become several sequences. Of "prompted" ones what follows the
    prompt is cut.

    Args:
      documents: ids of each document, `[n]`.
      length: tokens in a sequence.
      sequences: their kind, and the ids of BOS and EOS.

    Raises:
      DataError: a document of the kind "prompted" has no prompt, or its prompt leaves no room.
    """
    eos, prompted = sequences.eos_id, sequences.kind == "prompted"
    for number, tokens in enumerate(documents, start=1):
        ended = np.append(tokens, np.array(eos, tokens.dtype))
        if prompted:
            ended = ended[:length]
            if sequences.bos_id not in ended[:-1]:
                raise DataError(
                    f"Document {number} has no prompt of less than length - 1 = {length - 1} tokens; data."
                    "sequences='prompted' needs data.text_field='PROMPT>COMPLETION', the names of two fields "
                    "of JSON lines, and at least 20 documents; shorten the prompt, or take a larger length."
                )
        for start in range(0, len(ended), length):
            piece = ended[start : start + length]
            yield np.pad(piece, (0, length - len(piece)), constant_values=eos)


def pack(
    documents: Iterable[np.ndarray], *, length: int, wrap: bool, bos_id: int, eos_id: int
) -> Iterator[np.ndarray]:
    """Joins documents with EOS after each, and cuts the stream into sequences `[length]`.

    With `wrap`, every sequence is `[BOS] chunk [EOS]` around `length - 2` tokens of the stream,
    as MDLM (arXiv 2406.07524) and SDTT train on; otherwise the chunks themselves. The rest of
    the stream that does not fill a sequence is left out.

    Args:
      documents: ids of each document, `[n]`.
      length: tokens in a sequence.
      wrap: put BOS before and EOS after every chunk.
      bos_id, eos_id: of the vocabulary.
    """
    size = length - 2 if wrap else length
    waiting: list[np.ndarray] = []
    count = 0
    for tokens in documents:
        waiting += [tokens, np.array([eos_id], tokens.dtype)]
        count += len(tokens) + 1
        if count < size:
            continue
        stream = np.concatenate(waiting)
        whole = count // size * size
        for chunk in stream[:whole].reshape(-1, size):
            yield np.concatenate([[bos_id], chunk, [eos_id]], dtype=chunk.dtype) if wrap else chunk
        waiting, count = [stream[whole:]], count - whole
