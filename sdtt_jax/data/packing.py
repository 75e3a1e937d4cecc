"""From documents to sequences of equal length."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from sdtt_jax.data.tokenizer import Tokenizer

_DOCUMENTS_AT_ONCE = 256


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Each document's int32 ids `[n]`, in order."""
    waiting = iter(texts)
    while some := list(itertools.islice(waiting, _DOCUMENTS_AT_ONCE)):
        yield from tokenizer.encode_batch(some)


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
