"""The data stage: from a corpus to a vocabulary and packed sequences, once."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.config import differences, to_mapping
from sdtt_jax.data.config import DataConfig, TokenizerConfig
from sdtt_jax.data.corpora import SPLITS, TRAIN, VALIDATION, Track, divide, files_read, untracked
from sdtt_jax.data.loader import INFO_FILE, Shard, read_info
from sdtt_jax.data.normalize import PROMPT_END
from sdtt_jax.data.packing import encode_documents, packed
from sdtt_jax.data.tokenizer import (
    PREPARE_AGAIN,
    HubTokenizer,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.ops.sequences import Sequences
from sdtt_jax.paths import as_path, write_json


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a prepared data folder holds.

    Attributes:
      vocab_size: number of ids without MASK; `mask_id == vocab_size`.
      length: tokens in a sequence.
      bos_id, eos_id: the ids that packing sets.
      num_train, num_validation: sequences.
      num_documents: documents of both splits; one that gives its tail counts in both.
      num_characters: characters of both splits, after normalisation.
      characters_per_token: in the train split, EOS included.
      fingerprint: SHA-256 over all sequences, in order; equal fingerprints, equal batches.
      files: how many files of how many the text was read from; "" if from no folder of the user's.
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
    files: str = ""


def prepare(
    data_config: DataConfig,
    tokenizer_config: TokenizerConfig,
    data_dir: str | Path,
    tokenizer_dir: str | Path,
    track: Track = untracked,
    tokenizer: HubTokenizer | None = None,
) -> DataInfo:
    """Writes `data_dir` and `tokenizer_dir`, or recognises that they are finished.

    Both are built beside their place and renamed into it when whole, the tokenizer first, so
    what stands there is finished. The same configs and corpus give the same bytes.

    Args:
      data_config: the corpus, and how it is cut into sequences.
      tokenizer_config: the vocabulary.
      data_dir: where the sequences go.
      tokenizer_dir: where the vocabulary goes.
      track: wraps every pass over the text, for example `sdtt_jax.progress.track_text`.
      tokenizer: of a published model, for `tokenizer_config.kind` "hub".

    Raises:
      ConfigError: a folder holds data of another config (the message lists the fields that
        differ), or the configs do not suit the corpus.
      DataError: the corpus cannot be read, or a folder holds something else.
    """
    data_dir, tokenizer_dir = as_path(data_dir), as_path(tokenizer_dir)
    asked = {"data": to_mapping(data_config), "tokenizer": to_mapping(tokenizer_config)}
    if (data_dir / INFO_FILE).exists():
        return _finished(asked, data_dir, tokenizer_dir)
    _refuse_foreign(data_dir)
    with _partial(data_dir) as partial, _partial(tokenizer_dir) as partial_tokenizer:
        documents_of = divide(data_config, track)
        vocabulary: Tokenizer
        if tokenizer is None:
            texts = (
                text.replace(PROMPT_END, "\n")
                for text in documents_of(TRAIN, "learning the vocabulary")
            )
            vocabulary = train_tokenizer(tokenizer_config, texts, data_config.normalize)
        else:
            vocabulary = tokenizer.normalising(tokenizer_config, data_config.normalize)
        content = asked | _write_sequences(data_config, vocabulary, documents_of, partial)
        write_json(partial / INFO_FILE, content)
        if not _holds(tokenizer_dir, vocabulary):
            save_tokenizer(vocabulary, partial_tokenizer)
            partial_tokenizer.rename(tokenizer_dir)
        partial.rename(data_dir)
    return _info_from(content, data_dir)


def _finished(asked: dict[str, Any], data_dir: Path, tokenizer_dir: Path) -> DataInfo:
    content = read_info(data_dir)
    found = {name: content.get(name, {}) for name in asked}
    # Fields that it lacks, because they are newer, have their defaults.
    found["data"] = to_mapping(DataConfig()) | found["data"]
    _refuse_differences(found, asked, data_dir)
    if load_tokenizer(tokenizer_dir).digest != content.get("tokenizer_digest"):
        raise DataError(f"{tokenizer_dir} is not the tokenizer of {data_dir}; {PREPARE_AGAIN}.")
    return _info_from(content, data_dir)


def _write_sequences(
    config: DataConfig,
    tokenizer: Tokenizer,
    documents_of: Callable[[str, str], Iterator[str]],
    partial: Path,
) -> dict[str, Any]:
    # Ids of any vocabulary up to GPT-2's fit 16 bits, which halves the shards.
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    digest = hashlib.sha256()
    counts = {split: collections.Counter[str]() for split in SPLITS}
    arrangement = Sequences(config.sequences, tokenizer.bos_id, tokenizer.eos_id, config.wrap)

    def counted(split: str) -> Iterator[str]:
        for text in documents_of(split, f"tokenising the {split} split"):
            counts[split].update(documents=1, characters=len(text))
            yield text

    def encoded(split: str) -> Iterator[np.ndarray]:
        for ids in encode_documents(tokenizer, counted(split)):
            counts[split]["tokens"] += len(ids) + 1
            yield ids

    def sequences(split: str) -> Iterator[np.ndarray]:
        digest.update(split.encode())
        for sequence in packed(encoded(split), config.length, arrangement):
            counts[split]["sequences"] += 1
            digest.update(sequence.astype("<i4").tobytes())
            yield sequence.astype(dtype)
        if not counts[split]["sequences"]:
            raise ConfigError(
                f"data.length {config.length} is longer than the whole {split} split of "
                f"{counts[split]['tokens']} tokens; choose a shorter one"
                + (" or a larger data.validation_fraction." if split == VALIDATION else ".")
            )

    from sdtt_jax.data import builders  # imports TFDS, which takes half a second

    sources = {split: functools.partial(sequences, split) for split in SPLITS}
    builder = builders.PackedTokens(sources, partial, config.length, dtype)
    folder = as_path(builders.build(builder, config.num_shards))
    train, validation = counts[TRAIN], counts[VALIDATION]
    info = DataInfo(
        vocab_size=tokenizer.vocab_size,
        length=config.length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        num_train=train["sequences"],
        num_validation=validation["sequences"],
        num_documents=train["documents"] + validation["documents"],
        num_characters=train["characters"] + validation["characters"],
        characters_per_token=train["characters"] / train["tokens"],
        fingerprint=digest.hexdigest(),
        files=files_read(config),
    )
    shards = [
        Shard(str(path.relative_to(partial)), split, records, path.stat().st_size)
        for split in SPLITS
        for path, records in builders.shards(folder, split)
    ]
    return {
        "info": dataclasses.asdict(info),
        "dtype": dtype.name,
        "tokenizer_digest": tokenizer.digest,
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }


@contextlib.contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """An empty folder beside `directory`, removed at the end unless it was renamed.

    What a killed run left in it is removed first.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def _holds(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether `directory` has this tokenizer already, because a run was stopped between the renames.

    Raises:
      ConfigError, DataError: it has something else.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder; use another path.")
    other = load_tokenizer(directory)
    _refuse_differences(
        {"tokenizer": to_mapping(other.config), "data": {"normalize": other.normalize}},
        {"tokenizer": to_mapping(tokenizer.config), "data": {"normalize": tokenizer.normalize}},
        directory,
    )
    if other.digest != tokenizer.digest:
        raise DataError(
            f"{directory} holds a tokenizer that was learned from another text; move it away or "
            "use another folder."
        )
    return True


def _info_from(content: dict[str, Any], directory: Path) -> DataInfo:
    try:
        return DataInfo(**content["info"])
    except TypeError as error:
        raise DataError(f"{directory / INFO_FILE} is damaged ({error}); {PREPARE_AGAIN}.") from None
