"""Tokenizers: SentencePiece trained on the corpus, GPT-2's byte-level BPE, and those of published models.

MASK belongs to none of the vocabularies: it is `mask_id == vocab_size`, one past the last id.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import tokenizers
from tokenizers import decoders

from sdtt_jax.config import choose, from_mapping, to_mapping
from sdtt_jax.data.config import TokenizerConfig
from sdtt_jax.data.normalize import NORMALIZERS
from sdtt_jax.data.tokenizer_base import MASK_PIECE as MASK_PIECE
from sdtt_jax.data.tokenizer_base import Tokenizer as Tokenizer
from sdtt_jax.data.tokenizer_json import (
    losses,
    read_tokenizer,
    spells_bytes,
    unk_row,
    without_panics,
)
from sdtt_jax.data.vocabulary import SPACE_SYMBOL
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.paths import as_path

MODEL_FILE = "sentencepiece.model"
HUB_FILE = "tokenizers.json"
CONFIG_FILE = "tokenizer.json"
# SHA-256 of the bytes of GPT-2's tokens, in the order of their ids and with a zero byte between them.
GPT2_DIGEST = "80fc72dae333882a37b202858853685b0232e9dd624396c1024fb93536a62a83"
PREPARE_AGAIN = "remove the data and tokenizer folders and prepare the data again"


def ends(bos: int | None, eos: int | None) -> tuple[int, int] | None:
    """BOS and EOS of a vocabulary; if it has only one of them, that serves as both; None if it has neither.

    Models that have no BOS were trained on texts each of which follows the end of another.
    """
    first, last = (eos if bos is None else bos), (bos if eos is None else eos)
    return None if first is None or last is None else (first, last)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. One that was learned here has no normalisation of its own: text round-trips.

    Two things do not round-trip: characters that the train split lacks (they decode to "⁇", unless the
    model falls back to bytes), and U+2581, which SentencePiece uses for the space. A model that the user
    gives normalises as it was made to.
    """

    def __init__(self, config: TokenizerConfig, normalize: str, model: bytes):
        self.config, self.normalize = config, normalize
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        found = self._processor.bos_id(), self._processor.eos_id()  # -1: it has none
        self.bos_id, self.eos_id = ends(*(None if id < 0 else id for id in found)) or found
        self.unk_id = self._processor.unk_id()

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=1)

    def _decode_run(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, token: int) -> str:
        piece: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)]).decode("utf-8", errors="replace")
        return "⁇" if self._processor.is_unknown(token) else piece.replace(SPACE_SYMBOL, " ")

    def name_of(self, token: int) -> str:
        return self._processor.id_to_piece(token)


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE, id for id; BOS = EOS = `<|endoftext|>` = 50256.

    The string "<|endoftext|>" in a text is text, not the end of one.
    """

    def __init__(self, config: TokenizerConfig, normalize: str):
        self.config, self.normalize = config, normalize
        self._tokenizer = _gpt2_bpe()
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.digest = GPT2_DIGEST
        self.bos_id = self.eos_id = self.vocab_size - 1

    def normalising(self, config: TokenizerConfig, normalize: str) -> "Gpt2Tokenizer":
        """The same tokenizer with another normalisation, in a config of kind "gpt2"."""
        return Gpt2Tokenizer(dataclasses.replace(config, kind="gpt2"), normalize)

    def is_vocabulary_of(self, other: tokenizers.Tokenizer) -> bool:
        """Whether another has these tokens under these ids; it may have more after them, as MASK."""
        known = other.get_vocab().items()
        return {
            token: i for token, i in known if i < self.vocab_size
        } == self._tokenizer.get_vocab()

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [row.ids for row in self._tokenizer.encode_batch_fast(texts)]

    def _decode_run(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def _piece(self, token: int) -> str:
        return self._decode_run([token])

    def name_of(self, token: int) -> str | None:
        return self._tokenizer.id_to_token(token)


@functools.cache
def _gpt2_bpe() -> tokenizers.Tokenizer:
    """GPT-2's BPE from `gpt2_bpe/`; `<|endoftext|>` is its last token, and no text becomes it."""
    folder = importlib.resources.files("sdtt_jax.data") / "gpt2_bpe"
    vocabulary = json.loads((folder / "encoder.json").read_text("utf-8"))
    # The first line says the version.
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return bpe


class Special(NamedTuple):
    """The special tokens of a published model, in its own numbering."""

    rows: int  # rows of its embedding; the last ones may belong to no token
    # bos_id, eos_id: the tokens that begin and end a text.
    bos_id: int
    eos_id: int
    # MASK; None for a causal model.
    mask_row: int | None = None


class HubTokenizer(Tokenizer):
    """The tokenizer of a published model, as the library `tokenizers` writes it.

    Here MASK follows the vocabulary, wherever the published model has it: tokens that follow MASK there have
    ids here that are smaller by one. Special tokens that a text spells out ("<|im_start|>") become their ids.

    The config's kind is "hub" or "file", `model` is a tokenizer.json, and `special` gives the numbers that
    this file does not.
    """

    def __init__(self, config: TokenizerConfig, normalize: str, model: bytes, special: Special):
        self.config, self.normalize = config, normalize
        self.model, self.special = model, special
        try:
            self._tokenizer = read_tokenizer(model, special.rows)
        except Exception as error:  # `tokenizers` raises no narrower class
            raise DataError(f"The tokenizer cannot be read ({error}).") from None
        count = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if count > special.rows:
            raise DataError(
                f"The tokenizer has {count} tokens, but the model's embedding has only {special.rows} rows; "
                "the tokenizer belongs to another model."
            )
        for name, token in special._asdict().items():
            if name != "rows" and token is not None and not 0 <= token < special.rows:
                raise DataError(
                    f"{name} is token {token}, but the model has only tokens 0 to {special.rows - 1}; the "
                    "tokenizer belongs to another model."
                )
        self.vocab_size = special.rows - (special.mask_row is not None)
        self.digest = hashlib.sha256(model + repr(tuple(special)).encode()).hexdigest()
        self.bos_id, self.eos_id = self._ours([special.bos_id, special.eos_id])
        self._losses = losses(self._tokenizer)
        unk = unk_row(self._tokenizer, model)
        # Byte-level vocabularies, which need no unk, often name as unk the token that ends a text.
        serves = unk not in (special.bos_id, special.eos_id) or not spells_bytes(self._tokenizer)
        if unk is not None and serves:
            [self.unk_id] = self._ours([unk])

    def normalising(self, config: TokenizerConfig, normalize: str) -> "HubTokenizer":
        """The same tokenizer with another config and normalisation."""
        return HubTokenizer(config, normalize, self.model, self.special)

    def _ours(self, ids: Sequence[int]) -> list[int]:
        mask = self.special.mask_row
        if mask is None:
            return list(ids)
        return [self.vocab_size if i == mask else i - (i > mask) for i in ids]

    def _theirs(self, ids: Sequence[int]) -> list[int]:
        mask = self.special.mask_row
        return list(ids) if mask is None else [i + (i >= mask) for i in ids]

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        try:
            with without_panics():
                rows = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises no narrower class
            raise DataError(
                f"The tokenizer cannot read a text ({error}); take the file that belongs to the model."
            ) from None
        return [self._ours(row.ids) for row in rows]

    def _decode_run(self, ids: list[int]) -> str:
        return self._tokenizer.decode(self._theirs(ids), skip_special_tokens=False)

    def name_of(self, token: int) -> str | None:
        return self._tokenizer.id_to_token(*self._theirs([token]))

    def ends_word(self, token: int) -> bool:
        decoder, name = self._tokenizer.decoder, self.name_of(token) or ""
        return isinstance(decoder, decoders.BPEDecoder) and name.endswith(decoder.suffix)

    def count_lost(self, text: str) -> int:
        return 0 if self._losses is None else self._losses.count(NORMALIZERS[self.normalize](text))


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes what `load_tokenizer` reads, CONFIG_FILE last; `directory` must exist."""
    directory = as_path(directory)
    if isinstance(tokenizer, SentencePieceTokenizer):
        (directory / MODEL_FILE).write_bytes(tokenizer.model)
    content: dict[str, Any] = {
        "config": to_mapping(tokenizer.config),
        "normalize": tokenizer.normalize,
        "vocab_size": tokenizer.vocab_size,
        "digest": tokenizer.digest,
    }
    if isinstance(tokenizer, HubTokenizer):
        (directory / HUB_FILE).write_bytes(tokenizer.model)
        content["special"] = tokenizer.special._asdict()
    write_json(directory / CONFIG_FILE, content)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Loads a saved tokenizer; `DataError` if a file of it is missing or damaged."""
    path = as_path(directory) / CONFIG_FILE
    if not path.exists():
        raise DataError(
            f"{path} is missing: {directory} holds no tokenizer; give a run's tokenizer folder."
        )
    content = read_json(path, DataError, PREPARE_AGAIN, "is damaged")
    tokenizer: SentencePieceTokenizer | HubTokenizer
    try:
        config = from_mapping(TokenizerConfig, content["config"], "tokenizer")
        normalize, digest = content["normalize"], content["digest"]
        choose("normalize", normalize, NORMALIZERS)
        if config.kind == "gpt2":
            return Gpt2Tokenizer(config, normalize)
        published = config.kind == "hub" or config.file.endswith(".json")
        model = as_path(directory) / (HUB_FILE if published else MODEL_FILE)
        if published:
            special = Special(**content["special"])
            tokenizer = HubTokenizer(config, normalize, model.read_bytes(), special)
        else:
            tokenizer = SentencePieceTokenizer(config, normalize, model.read_bytes())
    except (KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{path} is damaged ({error}); {PREPARE_AGAIN}.") from None
    except FileNotFoundError:
        raise DataError(f"{model} is missing; {PREPARE_AGAIN}.") from None
    except RuntimeError:
        raise DataError(f"{model} is damaged; {PREPARE_AGAIN}.") from None
    if tokenizer.digest != digest:
        raise DataError(f"{model} is not the model that {path} describes; {PREPARE_AGAIN}.")
    return tokenizer
