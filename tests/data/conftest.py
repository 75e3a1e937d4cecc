"""A small prepared corpus that the tests of this folder share."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdtt_jax.data import DataConfig, DataInfo, TokenizerConfig, prepare
from sdtt_jax.data.embedded import bible_chapters
from sdtt_jax.data.ingest import ingest, start_reading


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` was given and what it made."""

    data_config: DataConfig
    tokenizer_config: TokenizerConfig
    data: Path
    tokenizer: Path
    info: DataInfo


def divide(config: DataConfig, folder: str | Path) -> Callable[[str], Iterator[str]]:
    """`documents_of(split)` of a corpus whose index is made in an empty folder."""
    return ingest(start_reading(config, Path(folder)), None).texts


@pytest.fixture(scope="session")
def chapters() -> list[str]:
    """The first forty chapters of the embedded corpus: real text, quick to prepare."""
    return list(itertools.islice(bible_chapters(), 40))


@pytest.fixture(scope="session")
def write_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """Writes documents to a new .jsonl file."""

    def write(texts: list[str]) -> Path:
        path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def prepared(
    chapters: list[str],
    write_jsonl: Callable[[list[str]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Prepared:
    """Forty chapters, characters of text8, sequences of 16 in three shards."""
    data_config = DataConfig(
        corpus=str(write_jsonl(chapters)), normalize="text8", length=16, num_shards=3
    )
    tokenizer_config = TokenizerConfig(model_type="char", vocab_size=64)
    run = tmp_path_factory.mktemp("run")
    info = prepare(data_config, tokenizer_config, run / "data", run / "tokenizer")
    return Prepared(data_config, tokenizer_config, run / "data", run / "tokenizer", info)
