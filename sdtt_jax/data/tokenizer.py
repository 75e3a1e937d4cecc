"""Vocabularies: SentencePiece trained on the corpus, and GPT-2's byte-level BPE.

MASK belongs to neither: it is `mask_id == vocab_size`, one past the last id.
"""

import abc
import functools
import hashlib
import importlib.resources
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from sdtt_jax.config import from_mapping, to_mapping
from sdtt_jax.data.config import TokenizerConfig
from sdtt_jax.data.normalize import NORMALIZERS
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.paths import as_path, write_json

MASK_PIECE = "▒"
MODEL_FILE = "sentencepiece.model"
CONFIG_FILE = "tokenizer.json"

PREPARE_AGAIN = "remove the data and tokenizer folders and prepare the data again"

_SPACE_SYMBOL = "▁"
# SentencePiece skips training sentences with these, so they are given to it as pieces instead.
_LINE_SYMBOLS = ("\n", "\t")
_SEGMENT_CHARACTERS = 500


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      config: what it was made from.
      normalize: name, in `NORMALIZERS`, of the normalisation that `encode` applies first.
      vocab_size: number of ids, MASK not counted.
      digest: SHA-256 of its model file; equal digests, equal ids.
      bos_id, eos_id: never produced by `encode`; they come from packing only.
      unk_id: what characters become that no id can spell; None if there are none.
    """

    config: TokenizerConfig
    normalize: str
    vocab_size: int
    digest: str
    bos_id: int
    eos_id: int
    unk_id: int | None = None

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids `[n]`, without BOS and EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Texts to a list of int32 ids `[n_i]`, without BOS and EOS."""
        normalize = NORMALIZERS[self.normalize]
        ids = self._encode_batch([normalize(text) for text in texts])
        return [np.asarray(row, np.int32) for row in ids]

    def encode_part(self, text: str) -> np.ndarray:
        """Part of a longer text to int32 ids `[n]`: spaces at its beginning and end are kept.

        Normalisation strips whole documents; a prompt, or what stands between two gaps, is none.
        """
        # Between two letters, which every normalisation leaves alone.
        normalized = NORMALIZERS[self.normalize](f"a{text}a")[1:-1]
        return np.asarray(self._encode_batch([normalized])[0], np.int32)

    def decode(self, ids: Iterable[int], *, mask: str = MASK_PIECE, separator: str = "\n") -> str:
        """Ids to text.

        Args:
          ids: `[n]` integers, in any range.
          mask: what MASK and ids out of range become; `""` leaves them out.
          separator: what a BOS or EOS (or several in a row) between two texts becomes. At the
            beginning and end they vanish.
        """
        texts = [""]
        for kind, run in itertools.groupby(map(int, ids), self._kind):
            if kind == "end":
                texts += [""] if texts[-1] else []
            elif kind == "text":
                texts[-1] += self._decode_run(list(run))
            else:
                texts[-1] += mask * len(list(run))
        return separator.join(texts if texts[-1] else texts[:-1])

    def pieces(self, ids: Iterable[int], *, mask: str = MASK_PIECE) -> list[str]:
        """The text of each id on its own, as long as `ids`: what an animation shows.

        BOS and EOS are `""`; MASK and ids out of range are `mask`. Joined, the pieces read like
        `decode`, except that a character spelled by several byte tokens shows as U+FFFD.
        """
        read = {"end": lambda _: "", "text": self._piece, "mask": lambda _: mask}
        return [read[self._kind(token)](token) for token in map(int, ids)]

    def _kind(self, token: int) -> str:
        if token in (self.bos_id, self.eos_id):
            return "end"
        return "text" if 0 <= token < self.vocab_size else "mask"

    @abc.abstractmethod
    def _encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    @abc.abstractmethod
    def _decode_run(self, ids: list[int]) -> str:
        """Text of ids that are neither special nor out of range."""

    @abc.abstractmethod
    def _piece(self, token: int) -> str: ...


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model without any normalisation of its own, so that text round-trips.

    Two things do not: characters that the train split lacks (they decode to "⁇", unless the
    model falls back to bytes), and U+2581, which SentencePiece uses for the space.
    """

    def __init__(self, config: TokenizerConfig, normalize: str, model: bytes):
        self.config, self.normalize = config, normalize
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        self.bos_id = self._processor.bos_id()
        self.eos_id = self._processor.eos_id()
        self.unk_id = self._processor.unk_id()

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=1)

    def _decode_run(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, token: int) -> str:
        if self._processor.is_byte(token):
            return bytes([int(self._processor.id_to_piece(token)[1:-1], 16)]).decode(
                "utf-8", errors="replace"
            )
        if self._processor.is_unknown(token):
            return "⁇"
        return self._processor.id_to_piece(token).replace(_SPACE_SYMBOL, " ")


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE, id for id; BOS = EOS = `<|endoftext|>` = 50256.

    The string "<|endoftext|>" in a text is text, not the end of one.
    """

    def __init__(self, config: TokenizerConfig, normalize: str):
        self.config, self.normalize = config, normalize
        self._tokenizer, self._bytes = _gpt2()
        self.vocab_size = len(self._bytes)
        self.digest = hashlib.sha256(b"\0".join(self._bytes)).hexdigest()
        self.bos_id = self.eos_id = self.vocab_size - 1

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [row.ids for row in self._tokenizer.encode_batch_fast(texts)]

    def _decode_run(self, ids: list[int]) -> str:
        return b"".join(self._bytes[token] for token in ids).decode("utf-8", errors="replace")

    def _piece(self, token: int) -> str:
        return self._bytes[token].decode("utf-8", errors="replace")


@functools.cache
def _gpt2() -> tuple[tokenizers.Tokenizer, list[bytes]]:
    folder = importlib.resources.files("sdtt_jax.data") / "gpt2_bpe"
    vocabulary = json.loads((folder / "encoder.json").read_text("utf-8"))
    # The first line says the version.
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_of = _gpt2_byte_of_character()
    table = [b""] * len(vocabulary)
    for piece, token in vocabulary.items():
        special = piece == "<|endoftext|>"
        table[token] = piece.encode() if special else bytes(byte_of[char] for char in piece)
    return bpe, table


def _gpt2_byte_of_character() -> dict[str, int]:
    """GPT-2 writes the 188 printable Latin-1 bytes as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], normalize: str = "none"
) -> Tokenizer:
    """Learns a vocabulary from the train split.

    Args:
      config: kind and size.
      texts: documents, already normalised; passed over once.
      normalize: the normalisation that they went through; `encode` repeats it.

    Raises:
      ConfigError: `tokenizer.vocab_size` does not suit the text; says which sizes do.
    """
    if config.kind == "gpt2":
        return Gpt2Tokenizer(config, normalize)
    return SentencePieceTokenizer(config, normalize, _train_sentencepiece(config, texts))


class _Sample:
    """Evenly spaced segments of a stream of documents, in bounded memory.

    Attributes:
      segments: between `limit` and `2 * limit` of them, or all if there are fewer.
      characters: all characters of the stream, sampled or not.
      line_symbols: those of `_LINE_SYMBOLS` that occur.
    """

    def __init__(self, texts: Iterable[str], limit: int):
        self.segments: list[str] = []
        self.characters: set[str] = set()
        self.line_symbols: set[str] = set()
        stride = 1
        for index, segment in enumerate(self._segments(texts)):
            if index % stride:
                continue
            self.segments.append(segment)
            if len(self.segments) > 2 * limit:
                self.segments = self.segments[::2]
                stride *= 2

    def _segments(self, texts: Iterable[str]) -> Iterator[str]:
        """Cuts documents before spaces into stretches that SentencePiece accepts (4192 bytes)."""
        for text in texts:
            text = text.replace(_SPACE_SYMBOL, " ").replace("\0", "")
            self.characters.update(text)
            for line in re.split(f"[{''.join(_LINE_SYMBOLS)}]", text):
                start = 0
                while start < len(line):
                    end = line.find(" ", start + _SEGMENT_CHARACTERS)
                    # Text without spaces (or in a script that has none) is cut anywhere.
                    if end < 0 or end > start + 2 * _SEGMENT_CHARACTERS:
                        end = min(len(line), start + 2 * _SEGMENT_CHARACTERS)
                    yield line[start:end]
                    start = end
        self.line_symbols = self.characters & set(_LINE_SYMBOLS)
        self.characters -= self.line_symbols


def _train_sentencepiece(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    sample = _Sample(texts, config.max_sentences)
    if not sample.segments:
        raise DataError("The train split holds no text to learn a vocabulary from.")
    # No character of the train split becomes unk because its segment was not drawn.
    missing = sorted(sample.characters.difference(*sample.segments))
    sentences = sample.segments + (["".join(missing)] if missing else [])
    model = io.BytesIO()
    limited = config.model_type == "char"
    size = config.vocab_size
    specials = 3 + len(sample.line_symbols) + (256 if config.byte_fallback else 0)
    smallest = len(sample.characters) + specials
    if size < smallest and not limited:
        raise ConfigError(
            f"tokenizer.vocab_size {size} is too small for the corpus: {len(sample.characters)} "
            f"characters and {specials} special pieces need at least {smallest}."
        )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=min(size, smallest) if limited else size,
            hard_vocab_limit=not limited,
            character_coverage=1.0,
            byte_fallback=config.byte_fallback,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=sorted(sample.line_symbols),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # The usual `<unk>`, `<s>` and `</s>` would be cut out of texts that contain them
            # (Penn Treebank and WikiText do); a private-use character is in no text.
            unk_piece="\ue000unk",
            bos_piece="\ue000bos",
            eos_piece="\ue000eos",
            unk_surface="⁇",
            num_threads=1,  # The order of floating-point sums, hence the model, depends on it.
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise _vocabulary_error(size, str(error)) from None
    return model.getvalue()


def _vocabulary_error(size: int, message: str) -> ConfigError:
    largest = re.search(r"<=\s*(\d+)", message)
    if "too high" in message and largest:
        return ConfigError(
            f"tokenizer.vocab_size {size} is too large for the corpus; the largest that works "
            f"is {largest[1]}."
        )
    reason = (message.strip().splitlines() or ["no reason given"])[-1]
    return ConfigError(
        f"tokenizer.vocab_size {size} does not suit the corpus (SentencePiece says: {reason}); "
        "try a smaller one."
    )


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes what `load_tokenizer` reads; `directory` must exist."""
    directory = Path(directory)
    if isinstance(tokenizer, SentencePieceTokenizer):
        (directory / MODEL_FILE).write_bytes(tokenizer.model)
    content: dict[str, Any] = {
        "config": to_mapping(tokenizer.config),
        "normalize": tokenizer.normalize,
        "vocab_size": tokenizer.vocab_size,
        "digest": tokenizer.digest,
    }
    write_json(directory / CONFIG_FILE, content)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Loads a saved tokenizer.

    Raises:
      DataError: a file of it is missing or damaged.
    """
    path = as_path(directory) / CONFIG_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        config = from_mapping(TokenizerConfig, content["config"], "tokenizer")
        normalize, digest = content["normalize"], content["digest"]
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {directory} holds no tokenizer.") from None
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise DataError(f"{path} is damaged ({error}); {PREPARE_AGAIN}.") from None
    if config.kind == "gpt2":
        return Gpt2Tokenizer(config, normalize)
    model = as_path(directory) / MODEL_FILE
    try:
        tokenizer = SentencePieceTokenizer(config, normalize, model.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{model} is missing; {PREPARE_AGAIN}.") from None
    except RuntimeError:
        raise DataError(f"{model} is damaged; {PREPARE_AGAIN}.") from None
    if tokenizer.digest != digest:
        raise DataError(f"{model} is not the model that {path} describes; {PREPARE_AGAIN}.")
    return tokenizer
