"""The data stage: corpus to documents, vocabulary and packed sequences, once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.configs import differences, to_mapping
from sdtt_jax.data import builders
from sdtt_jax.data.config import DataConfig, TokenizerConfig
from sdtt_jax.data.corpora import SPLITS, TRAIN, VALIDATION, held_out_digests, split_documents
from sdtt_jax.data.loader import INFO_FILE, Shard, read_info
from sdtt_jax.data.packing import encode_documents, pack
from sdtt_jax.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from sdtt_jax.errors import ConfigError, DataError

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a prepared data folder holds.

    Attributes:
      vocab_size: number of ids without MASK; `mask_id == vocab_size`.
      length: tokens in a sequence.
      bos_id, eos_id: the ids that packing sets.
      num_train, num_validation: sequences.
      num_documents: documents of both splits.
      num_characters: characters of both splits, after normalisation.
      characters_per_token: in the train split, EOS included.
      fingerprint: SHA-256 over all sequences, in order; equal fingerprints, equal batches.
    """

    vocab_size: int
    length: int
    bos_id: int
    eos_id: int
    num_train: int
    num_validation: int
    num_documents: int
    num_characters: int
    characters_per_token: float
    fingerprint: str


def prepare(
    data_config: DataConfig,
    tokenizer_config: TokenizerConfig,
    data_dir: str | Path,
    tokenizer_dir: str | Path,
    progress: Progress | None = None,
) -> DataInfo:
    """Writes `data_dir` and `tokenizer_dir`, or recognises that they are finished.

    Both are built beside their place and renamed into it when whole, the tokenizer first, so
    what stands there is finished. The same configs and corpus give the same bytes.

    Args:
      progress: told in a few words what begins.

    Raises:
      ConfigError: a folder holds data of another config (the message lists the fields that
        differ), or the configs do not suit the corpus.
      DataError: the corpus cannot be read, or a folder holds something else.
    """
    data_dir, tokenizer_dir = Path(data_dir), Path(tokenizer_dir)
    tell = progress or (lambda message: None)
    asked = {"data": to_mapping(data_config), "tokenizer": to_mapping(tokenizer_config)}
    if (data_dir / INFO_FILE).exists():
        content = read_info(data_dir)
        found = {name: content.get(name, {}) for name in asked}
        _refuse_differences(found, asked, data_dir)
        load_tokenizer(tokenizer_dir)
        return _info_from(content, data_dir)
    _refuse_foreign(data_dir)
    partial, partial_tokenizer = _partial(data_dir), _partial(tokenizer_dir)

    tell("reading the corpus")
    documents = _Tally()
    held_out = held_out_digests(data_config)
    sources = {
        split: lambda split=split: documents.count(
            split, split_documents(data_config, split, held_out)
        )
        for split in SPLITS
    }
    folder = builders.build(builders.Documents(sources, partial), data_config.num_shards)
    texts = {split: _Texts(folder, split) for split in SPLITS}

    tell("learning the vocabulary")
    tokenizer, model = train_tokenizer(tokenizer_config, texts[TRAIN], data_config.normalize)
    existing = _existing_tokenizer(tokenizer, model, tokenizer_dir)
    if not existing:
        save_tokenizer(tokenizer, model, partial_tokenizer)

    tell("packing sequences")
    content = asked | _write_packed(data_config, tokenizer, texts, documents, partial)
    (partial / INFO_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    if not existing:
        partial_tokenizer.rename(tokenizer_dir)
    else:
        shutil.rmtree(partial_tokenizer)
    partial.rename(data_dir)
    return _info_from(content, data_dir)


class _Tally:
    """Counts documents and characters as they pass."""

    def __init__(self) -> None:
        self.documents: dict[str, int] = {}
        self.characters: dict[str, int] = {}

    def count(self, split: str, texts: Iterator[str]) -> Iterator[str]:
        self.documents[split] = self.characters[split] = 0
        for text in texts:
            self.documents[split] += 1
            self.characters[split] += len(text)
            yield text


class _Texts:
    """A written split's documents; every iteration passes over them once."""

    def __init__(self, folder: str, split: str):
        self._source = builders.open_source(folder, split)

    def __iter__(self) -> Iterator[str]:
        for example in self._source:
            yield example["text"].decode("utf-8")


def _write_packed(
    config: DataConfig,
    tokenizer: Tokenizer,
    texts: dict[str, _Texts],
    documents: _Tally,
    partial: Path,
) -> dict[str, Any]:
    # Ids of any vocabulary up to GPT-2's fit 16 bits, which halves the shards.
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    digest = hashlib.sha256()
    counts = dict.fromkeys(SPLITS, 0)
    tokens = dict.fromkeys(SPLITS, 0)

    def encoded(split: str) -> Iterator[np.ndarray]:
        for ids in encode_documents(tokenizer, texts[split]):
            tokens[split] += len(ids) + 1
            yield ids

    def sequences(split: str) -> Iterator[np.ndarray]:
        digest.update(split.encode())
        for sequence in pack(
            encoded(split),
            length=config.length,
            wrap=config.wrap,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        ):
            counts[split] += 1
            digest.update(sequence.astype("<i4").tobytes())
            yield sequence.astype(dtype)
        if not counts[split]:
            raise ConfigError(
                f"data.length {config.length} is longer than the whole {split} split of "
                f"{tokens[split]} tokens; choose a shorter one"
                + (" or a larger data.validation_fraction." if split == VALIDATION else ".")
            )

    builder = builders.PackedTokens(
        {split: lambda split=split: sequences(split) for split in SPLITS},
        partial,
        config.length,
        dtype,
    )
    folder = Path(builders.build(builder, config.num_shards))
    info = DataInfo(
        vocab_size=tokenizer.vocab_size,
        length=config.length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        num_train=counts[TRAIN],
        num_validation=counts[VALIDATION],
        num_documents=sum(documents.documents.values()),
        num_characters=sum(documents.characters.values()),
        characters_per_token=documents.characters[TRAIN] / tokens[TRAIN],
        fingerprint=digest.hexdigest(),
    )
    shards = [
        Shard(str(path.relative_to(partial)), split, records, path.stat().st_size)
        for split in SPLITS
        for path, records in builders.shards(folder, split)
    ]
    return {
        "info": dataclasses.asdict(info),
        "dtype": dtype.name,
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }


def _partial(directory: Path) -> Path:
    """An empty folder beside `directory`; what an interrupted run left in it goes."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _refuse_differences(found: dict[str, Any], asked: dict[str, Any], directory: Path) -> None:
    lines = differences(found, asked)
    if lines:
        raise ConfigError(
            f"{directory} holds data of another config ({'; '.join(lines)}); use another "
            "folder, or restore the fields."
        )


def _refuse_foreign(directory: Path) -> None:
    if directory.is_dir():
        if any(directory.iterdir()):
            raise DataError(
                f"{directory} is not empty but holds no finished data ({INFO_FILE} is missing); "
                "move it away or use another folder."
            )
    elif directory.exists():
        raise DataError(f"{directory} is not a folder; use another path.")


def _existing_tokenizer(tokenizer: Tokenizer, model: bytes, directory: Path) -> bool:
    """Whether `directory` already holds this very tokenizer (a run stopped between renames)."""
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory} is not a folder; use another path.")
    if not directory.is_dir() or not any(directory.iterdir()):
        return False
    other = load_tokenizer(directory)
    _refuse_differences(
        {"tokenizer": to_mapping(other.config), "data": {"normalize": other.normalize}},
        {"tokenizer": to_mapping(tokenizer.config), "data": {"normalize": tokenizer.normalize}},
        directory,
    )
    if model and (directory / "sentencepiece.model").read_bytes() != model:
        raise DataError(
            f"{directory} holds a tokenizer that was learned from another text; move it away or "
            "use another folder."
        )
    return True


def _info_from(content: dict[str, Any], directory: Path) -> DataInfo:
    try:
        return DataInfo(**content["info"])
    except TypeError as error:
        raise DataError(
            f"{directory / INFO_FILE} is damaged ({error}); remove the folder and prepare the "
            "data again."
        ) from None
