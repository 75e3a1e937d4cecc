"""What a tokenizer.json asks of the library `tokenizers` that wrote it."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import models

# `tokenizers` panics, and prints a page, on these files of another library (its issue 1645).
_NO_CHARACTERS = re.compile(rb'"precompiled_charsmap"\s*:\s*(null|"")')


@contextlib.contextmanager
def without_panics() -> Iterator[None]:
    """Makes panics of `tokenizers`, which `except Exception` does not catch, a `ValueError`."""
    try:
        yield
    except BaseException as error:
        # Its module cannot be imported.
        if type(error).__name__ == "PanicException":
            raise ValueError(str(error)) from None
        raise


def read_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, which gives a text the same ids each time, and all of them.

    Some files ask for texts to be truncated, or padded, for the model that they belong to, or for merges to
    be left out at random, as its training did (dropout).

    Raises:
      Exception: it is damaged, or of a kind that `tokenizers` does not know; it raises no narrower class.
    """
    if _NO_CHARACTERS.search(content):
        raise ValueError(
            "its normalizer Precompiled has no precompiled_charsmap; take the tokenizer.json that the model "
            "was published with"
        )
    with without_panics():
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def unk_row(tokenizer: tokenizers.Tokenizer, content: bytes) -> int | None:
    """The token of unknown characters; None if the tokenizer.json `content` names none."""
    model: Any = tokenizer.model
    if isinstance(model, models.Unigram):
        # The only kind of model whose object does not give its unk token.
        return json.loads(content)["model"].get("unk_id")  # type: ignore[no-any-return]
    return tokenizer.token_to_id(model.unk_token) if model.unk_token else None
