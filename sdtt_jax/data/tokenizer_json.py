"""Reads a tokenizer.json, and finds which characters its vocabulary cannot spell."""

import codecs
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models, pre_tokenizers

# `tokenizers` panics, and prints a page, on these files of another library (its issue 1645).
_NO_CHARACTERS = re.compile(rb'"precompiled_charsmap"\s*:\s*(null|"")')
# A token that counts losses, with a private-use character, and its id, beyond those of any vocabulary.
_LOST_PIECE, _LOST = "\ue000lost", 2**32 - 1


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


def read_tokenizer(content: bytes, rows: int | None = None) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, which gives a text the same ids each time, and all of them.

    Some files ask for texts to be truncated, or padded, for the model that they belong to, or for merges to
    be left out at random, as its training did (dropout). Some add tokens, such as padding, for which the
    model's embedding of `rows` rows has none: no text holds them, and nothing predicts them.

    Raises:
      Exception: it is damaged, or of a kind that `tokenizers` does not know; it raises no narrower class.
    """
    if _NO_CHARACTERS.search(content):
        raise ValueError(
            "its normalizer Precompiled has no precompiled_charsmap; take the tokenizer.json that the model "
            "was published with"
        )
    with without_panics():
        tokenizer = tokenizers.Tokenizer.from_buffer(content.removeprefix(codecs.BOM_UTF8))
    if rows is not None and max(tokenizer.get_added_tokens_decoder(), default=0) >= rows:
        described = json.loads(content.removeprefix(codecs.BOM_UTF8))
        added = described["added_tokens"]
        described["added_tokens"] = [token for token in added if token["id"] < rows]
        return read_tokenizer(json.dumps(described).encode())
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
        return json.loads(content)["model"].get("unk_id")
    return tokenizer.token_to_id(model.unk_token) if model.unk_token else None


def spells_bytes(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a token for each byte lets the vocabulary spell any text."""
    vocabulary = tokenizer.get_vocab()
    fallback = getattr(tokenizer.model, "byte_fallback", False)
    return all(byte in vocabulary for byte in pre_tokenizers.ByteLevel.alphabet()) or (
        fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    )


class Losses(NamedTuple):
    """Counts what vanishes from texts: BPE without unk leaves out each character that is no token."""

    tokenizer: tokenizers.Tokenizer  # the same one, with an unk for each such character

    def count(self, text: str) -> int:
        """The number of characters, or bytes if the vocabulary is of bytes, that vanish from a text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids.count(_LOST)


def losses(tokenizer: tokenizers.Tokenizer) -> Losses | None:
    """What counts the losses of a tokenizer; None if nothing vanishes, or only by its normalisation."""
    model: Any = tokenizer.model
    if not isinstance(model, models.BPE) or model.unk_token or spells_bytes(tokenizer):
        return None
    described = json.loads(tokenizer.to_str())
    described["model"]["vocab"][_LOST_PIECE] = _LOST
    described["model"] |= {"unk_token": _LOST_PIECE, "fuse_unk": False}
    return Losses(read_tokenizer(json.dumps(described).encode()))
