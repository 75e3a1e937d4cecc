"""Benchmark texts by name, each with its source, its splits and its detokenizer in one table.

A set is read from a local folder of its files if one is given; else from what TFDS has prepared on this
machine, where TFDS has the set; else from the model hub's copy, downloaded once into the hub's cache.
Files are Parquet, JSONL or plain text, and TFDS' ArrayRecord.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from sdtt_jax.data.config import DataConfig
from sdtt_jax.data.corpora import SUFFIXES, documents
from sdtt_jax.data.detokenize import DETOKENIZERS
from sdtt_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class NamedText:
    """Where a set of texts is and how it is read.

    Attributes:
      repo: data set of the hub, "owner/name".
      splits: split name -> glob patterns of its files in the repository.
      text_field: the field or column that holds the text.
      detokenize: name of its detokenizer, see `sdtt_jax.data.DETOKENIZERS`.
      revision: branch of the repository; `refs/convert/parquet` is the hub's own conversion.
      tfds: its name in TFDS, with its config, and the feature that holds the text; None if TFDS lacks it.
    """

    repo: str
    splits: Mapping[str, tuple[str, ...]]
    text_field: str = "text"
    detokenize: str = "none"
    revision: str = "main"
    tfds: tuple[str, str] | None = None


TFDS_INFO = "dataset_info.json"
CONVERTED = "refs/convert/parquet"


def _converted(repo: str, config: str, splits: Sequence[str], **fields: Any) -> NamedText:
    """A set in the hub's own conversion to Parquet, `config/split/0000.parquet`."""
    patterns = {split: (f"{config}/{split}/*.parquet",) for split in splits}
    return NamedText(repo, patterns, revision=CONVERTED, **fields)


_ALL = ("train", "validation", "test")
NAMED_TEXTS: dict[str, NamedText] = {
    "ptb": _converted(
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        _ALL,
        text_field="sentence",
        detokenize="ptb",
    ),
    "wikitext2": _converted(
        "Salesforce/wikitext", "wikitext-2-raw-v1", _ALL, detokenize="wikitext"
    ),
    "wikitext103": _converted(
        "Salesforce/wikitext", "wikitext-103-raw-v1", _ALL, detokenize="wikitext"
    ),
    "lm1b": _converted(
        "dvruette/lm1b",
        "default",
        ("train", "test"),
        detokenize="lm1b",
        tfds=("lm1b", "text"),
    ),
    "lambada": _converted(
        "EleutherAI/lambada_openai",
        "default",
        ("test",),
        detokenize="lambada",
        tfds=("lambada", "passage"),
    ),
    "ag_news": _converted(
        "fancyzhx/ag_news",
        "default",
        ("train", "test"),
        tfds=("ag_news_subset", "description"),
    ),
    "wiki40b": _converted("google/wiki40b", "en", _ALL, tfds=("wiki40b/en", "text")),
    "pubmed": _converted(
        "armanc/scientific_papers",
        "pubmed",
        _ALL,
        text_field="article",
        detokenize="scientific_papers",
        tfds=("scientific_papers/pubmed", "article"),
    ),
    "arxiv": _converted(
        "armanc/scientific_papers",
        "arxiv",
        _ALL,
        text_field="article",
        detokenize="scientific_papers",
        tfds=("scientific_papers/arxiv", "article"),
    ),
    "openwebtext": _converted("Skylion007/openwebtext", "plain_text", ("train",)),
}


def named_texts(name: str, split: str, folder: str | Path | None = None) -> Iterator[str]:
    """The texts of a split of a named set, detokenised, empty ones left out.

    A text is a row of the set's files: a sentence of PTB, a line of WikiText, an article elsewhere.

    Args:
      name: one of `NAMED_TEXTS`.
      split: one of the set's splits.
      folder: holds the split's files, either as `SPLIT.parquet`, `.jsonl` or `.txt`, or in a folder
        `SPLIT/`, or is what TFDS has prepared (with its `dataset_info.json`); None looks for that in
        $TFDS_DATA_DIR or ~/tensorflow_datasets, and takes the hub's copy if it is not there.

    Raises:
      ConfigError: no such set, split or file; the message says which file to put where.
      DataError: the hub cannot be reached, or a file is damaged or lacks the text field.
    """
    if name not in NAMED_TEXTS:
        raise ConfigError(f"text set {name!r} is unknown; choose one of {', '.join(NAMED_TEXTS)}.")
    text = NAMED_TEXTS[name]
    if split not in text.splits:
        raise ConfigError(f"{name} has no split {split!r}; it has {', '.join(text.splits)}.")
    prepared = _prepared(text) if folder is None else Path(folder)
    if prepared is not None and text.tfds is not None and (prepared / TFDS_INFO).is_file():
        yield from _from_tfds(prepared, split, text.tfds[1], DETOKENIZERS[text.detokenize])
        return
    for path in _fetch(name, split) if folder is None else _local(name, split, Path(folder)):
        config = DataConfig(
            corpus=str(path), text_field=text.text_field, detokenize=text.detokenize
        )
        yield from documents(config)


def _prepared(text: NamedText) -> Path | None:
    """The newest version of a set that TFDS has prepared on this machine."""
    if text.tfds is None:
        return None
    root = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    found = [info.parent for info in (root / text.tfds[0]).glob(f"*.*.*/{TFDS_INFO}")]
    return max(found, key=lambda path: tfds.core.Version(path.name), default=None)


def _from_tfds(folder: Path, split: str, feature: str, undo: Callable[[str], str]) -> Iterator[str]:
    builder = tfds.builder_from_directory(str(folder))
    if split not in builder.info.splits or feature not in (builder.info.features or {}):
        raise DataError(
            f"{folder} has no feature {feature!r} in a split {split!r}; prepare the set again."
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{folder} holds {builder.info.file_format}, which only TensorFlow reads; prepare it with "
            "file_format='array_record'."
        )
    for record in builder.as_data_source(split):
        raw = record[feature]
        text = undo(raw.decode("utf-8") if isinstance(raw, bytes) else str(raw))
        if text.strip():
            yield text


def _local(name: str, split: str, folder: Path) -> list[Path]:
    places = [folder / f"{split}{suffix}" for suffix in SUFFIXES] + [folder / split]
    found = [place for place in places if place.exists()][:1]
    if not found:
        listed = ", ".join(place.name for place in places)
        raise ConfigError(
            f"{folder} holds no {split} split of {name}: put one of {listed} there, with the text in "
            f"{NAMED_TEXTS[name].text_field!r}."
        )
    return found


def _fetch(name: str, split: str) -> list[Path]:
    text = NAMED_TEXTS[name]
    patterns = list(text.splits[split])
    try:
        root = Path(
            snapshot_download(
                text.repo, repo_type="dataset", revision=text.revision, allow_patterns=patterns
            )
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: {text.repo} is not in the local cache and the hub cannot be reached ({reason}). "
            f"Download {patterns[0]} of its revision {text.revision} where there is a network, and give "
            f"the folder that holds them as {split}/."
        ) from None
    files = sorted(path for pattern in patterns for path in root.glob(pattern))
    if not files:
        raise DataError(
            f"{name}: {text.repo} at {text.revision} has no {patterns[0]}; give a folder that holds "
            f"its files as {split}/."
        )
    return files
