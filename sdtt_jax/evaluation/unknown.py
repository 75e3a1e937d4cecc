"""Tokens for what a vocabulary cannot spell: scored as any other, though they say nothing about the text."""

from collections.abc import Iterable

import numpy as np

from sdtt_jax.data import Tokenizer
from sdtt_jax.evaluation.record import Record


def unknown_tokens(tokenizer: Tokenizer | None, texts: Iterable[np.ndarray]) -> int:
    """How many tokens of texts are unk.

    SentencePiece makes a single unk of a run of unknown characters, so that more of the text may be lost.

    Args:
      tokenizer: of the texts; None if only the tokens are known, of which none is then counted.
      texts: int32 tokens `[n_i]`.
    """
    # An unk that is EOS cannot be told from the end of a text.
    if tokenizer is None or tokenizer.unk_id in (None, tokenizer.eos_id):
        return 0
    return sum(int(np.count_nonzero(text == tokenizer.unk_id)) for text in texts)


def unknown_note(tokenizer: Tokenizer | None, texts: Iterable[np.ndarray], what: str) -> str:
    """A line on how much of texts is unk; empty if nothing is.

    Args:
      tokenizer, texts: as `unknown_tokens`.
      what: the name of the texts.
    """
    texts = list(texts)
    count, total = unknown_tokens(tokenizer, texts), sum(map(len, texts))
    if not count:
        return ""
    return (
        f"{what}: {count} of {total} tokens ({count / total:.2%}) stand for text that the vocabulary lacks, "
        "and are measured as if they were text"
    )


def log_unknown(
    record: Record, tokenizer: Tokenizer | None, texts: Iterable[np.ndarray], what: str
) -> None:
    """Logs `unknown_note`, if there is anything to say."""
    if note := unknown_note(tokenizer, texts, what):
        record.log(f"  {note}")
