"""The data stage: from a corpus to a vocabulary and packed sequences, once.

The corpus is read in parts (`reading`), by any number of workers (`engines`). Each part's tokens go into a
store on disk (`tasks`); the split of each document is decided from an index of all documents (`division`);
then each shard is written from the store. Every step depends on the corpus and the config alone, so the
shards are the same bytes for any number and kind of workers, and a killed preparation continues where it
stopped.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from sdtt_jax.config import differences, require, to_mapping
from sdtt_jax.data.config import DataConfig, TokenizerConfig
from sdtt_jax.data.corpora import TRAIN
from sdtt_jax.data.engines import Engine, in_process
from sdtt_jax.data.ingest import CorpusReading, Track, ingest, start_reading, untracked
from sdtt_jax.data.making import train_tokenizer
from sdtt_jax.data.normalize import PROMPT_END
from sdtt_jax.data.reading import samples_digest
from sdtt_jax.data.records import INFO_FILE, made_with, read_info
from sdtt_jax.data.shards import TOKENIZER, DataInfo, write_shards
from sdtt_jax.data.tokenizer import (
    CONFIG_FILE,
    HUB_FILE,
    MODEL_FILE,
    PREPARE_AGAIN,
    Gpt2Tokenizer,
    HubTokenizer,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.paths import entries, file_lock, is_remote, remove_tree, resolve_links, with_target
from sdtt_jax.version import __version__

PLAN = "plan.json"
# What a tokenizer's folder holds before CONFIG_FILE, which `save_tokenizer` writes last.
_WRITTEN_FIRST = {MODEL_FILE, HUB_FILE}


def prepare(
    data_config: DataConfig,
    tokenizer_config: TokenizerConfig,
    data_dir: str | Path,
    tokenizer_dir: str | Path,
    track: Track = untracked,
    tokenizer: HubTokenizer | Gpt2Tokenizer | None = None,
    engine: Engine[Any] = in_process,
) -> DataInfo:
    """Writes `data_dir` and `tokenizer_dir`, or recognises that they are finished.

    Both are built next to their final path and renamed to it when complete, the tokenizer first, so a folder
    at its final path is finished. The same configs and corpus give the same bytes. After a stop, the next
    preparation of the same config and corpus finds what is finished and does not repeat it. While it runs, it
    takes the disk space of the shards and 2 bytes a token more (4 with a vocabulary of more than 2**16 ids).
    Another process that prepares the same folder (not in a bucket) waits, and then finds it finished.

    Args:
      data_config: the corpus, and how it is cut into sequences.
      tokenizer_config: the vocabulary.
      data_dir, tokenizer_dir: where sequences and vocabulary go; symbolic links stay links.
      track: wraps every pass, for example `sdtt_jax.progress.track_text`.
      tokenizer: a published model's tokenizer, for `tokenizer_config.kind` "hub".
      engine: runs the tasks, from `sdtt_jax.data.engines`.

    Raises:
      ConfigError: a folder holds data of another config (the message lists the fields that
        differ), one folder is within the other, or the configs do not suit the corpus.
      DataError: the corpus cannot be read, or a folder holds something else.
    """
    data_dir, tokenizer_dir = resolve_links(data_dir), resolve_links(tokenizer_dir)
    asked = {"data": to_mapping(data_config), "tokenizer": to_mapping(tokenizer_config)}
    partial, work = (data_dir.parent / f".{data_dir.name}.{end}" for end in ("partial", "work"))
    # Another process may be preparing it; but a finished folder may be one where nothing can be locked.
    finished = (data_dir / INFO_FILE).exists
    with contextlib.nullcontext() if finished() else file_lock(data_dir):
        if finished():
            remove_tree(work)
            return _finished(asked, data_dir, tokenizer_dir)
        one, other = (with_target(folder)[-1] for folder in (data_dir, tokenizer_dir))
        require(
            is_remote(data_dir) or not (one.is_relative_to(other) or other.is_relative_to(one)),
            f"data_dir={data_dir} and tokenizer_dir={tokenizer_dir} must be two folders, neither within the "
            "other.",
        )
        require(
            not any(os.path.exists(path) and os.path.samefile(path, ".") for path in (one, other)),
            "data_dir and tokenizer_dir must not be the working directory, in whose place they are put; give "
            "a folder within it.",
        )
        if is_remote(data_dir):
            partial = data_dir  # Buckets cannot rename; there a folder with its info is finished.
        if not (is_remote(data_dir) and (work / PLAN).exists()):
            _refuse_foreign(data_dir)
        given: Tokenizer | None = None
        if tokenizer is not None:
            given = tokenizer.normalising(tokenizer_config, data_config.normalize)
        elif tokenizer_config.kind != "sentencepiece":
            given = train_tokenizer(tokenizer_config, (), data_config.normalize)
        read = start_reading(data_config, work, engine, track)
        # What determines the tokens of every part. Its kind alone determines GPT-2's vocabulary.
        named = None if tokenizer_config.kind == "gpt2" else given
        plan = _without_limit(asked) | {
            "version": __version__,
            "parts": read.parts,
            "samples": samples_digest(read.parts),
            "given": None if named is None else named.digest,
        }
        _continue(work, partial, json.loads(json.dumps(plan)))
        try:
            vocabulary = _vocabulary(read, tokenizer_config, given)
            if (partial / INFO_FILE).exists():
                content = read_json(partial / INFO_FILE) | asked
            else:
                content = asked | write_shards(read, vocabulary, partial)
            if not _holds(tokenizer_dir, vocabulary):
                _deliver(vocabulary, tokenizer_dir)
            write_json(partial / INFO_FILE, content)
            if partial != data_dir:
                for path in partial.rglob(".*"):  # which workers that were killed left
                    path.unlink()
                partial.rename(data_dir)
            remove_tree(work)
        except BaseException as error:
            # Nothing is worth keeping: no part was finished, or the config must be changed.
            if isinstance(error, ConfigError) or not any(work.glob("*/*.json")):
                remove_tree(work)
                remove_tree(partial)
            raise
        return _info_from(content, data_dir)


def _without_limit(asked: dict[str, Any]) -> dict[str, Any]:
    """The configs without the number of bad rows that may be skipped, on which no token depends."""
    data = {name: value for name, value in asked["data"].items() if name != "skip_bad"}
    return asked | {"data": data}


def _continue(work: Path, partial: Path, plan: dict[str, Any]) -> None:
    """Removes the files of an earlier preparation, unless it followed the same plan.

    Earlier versions wrote plans without `samples` of the text: what they have begun is begun anew.
    """
    with contextlib.suppress(DataError):
        if read_json(work / PLAN) == plan:
            return
    for folder in (work, partial):
        remove_tree(folder)
        folder.mkdir(parents=True)
    write_json(work / PLAN, plan)


def _vocabulary(read: CorpusReading, config: TokenizerConfig, given: Tokenizer | None) -> Tokenizer:
    """The vocabulary: given, learned now, or learned by an earlier run that was stopped."""
    folder, data = read.work / TOKENIZER, read.how.config
    if (folder / CONFIG_FILE).exists():
        return load_tokenizer(folder)
    tokenizer = given
    if tokenizer is None:
        division = ingest(read, None)
        characters = sum(split["characters"] for split in division.totals().values())
        plain = division.texts(TRAIN)
        if data.sequences == "prompted":
            plain = (text.replace(PROMPT_END, "\n") for text in plain)
        texts = read.track(plain, "learning the vocabulary", characters, len)
        tokenizer = train_tokenizer(config, texts, data.normalize)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    return tokenizer


def _finished(asked: dict[str, Any], data_dir: Path, tokenizer_dir: Path) -> DataInfo:
    content = read_info(data_dir)
    # Fields that are newer than the data have their defaults.
    newer = {"data": to_mapping(DataConfig()), "tokenizer": to_mapping(TokenizerConfig())}
    found = {name: newer[name] | content.get(name, {}) for name in asked}
    _refuse_differences(_without_limit(found), _without_limit(asked), data_dir)
    if not made_with(load_tokenizer(tokenizer_dir), content):
        raise DataError(f"{tokenizer_dir} is not the tokenizer of {data_dir}; {PREPARE_AGAIN}.")
    return _info_from(content, data_dir)


def _deliver(tokenizer: Tokenizer, directory: Path) -> None:
    if is_remote(directory):
        save_tokenizer(tokenizer, directory)
        return
    partial = directory.with_name(f".{directory.name}.partial")
    with file_lock(directory):
        # Another preparation may have been first, of other data with the same vocabulary.
        if not _holds(directory, tokenizer):
            remove_tree(partial)
            partial.mkdir(parents=True)
            save_tokenizer(tokenizer, partial)
            partial.rename(directory)


def _refuse_differences(found: dict[str, Any], asked: dict[str, Any], directory: Path) -> None:
    lines = differences(found, asked)
    if lines:
        raise ConfigError(
            f"{directory} holds data of another config ({'; '.join(lines)}); use another "
            "folder, or restore the fields."
        )


def _refuse_foreign(directory: Path) -> None:
    if directory.is_dir():
        if entries(directory):
            raise DataError(
                f"{directory} is not empty but holds no finished data ({INFO_FILE} is missing); "
                "move it away or use another folder."
            )
    elif directory.exists():
        raise DataError(f"{directory} is not a folder; use another path.")


def _holds(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether `directory` already holds this tokenizer: a preparation was stopped after delivering it.

    Raises an error if it holds anything else, except for the first files of a delivery into a bucket.
    """
    if not directory.exists() or (directory.is_dir() and not entries(directory)):
        return False
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder; use another path.")
    if is_remote(directory) and {path.name for path in entries(directory)} <= _WRITTEN_FIRST:
        return False
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
