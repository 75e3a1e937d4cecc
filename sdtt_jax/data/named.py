"""Benchmark texts by name, each with its source, its splits and its detokenizer in one table.

A set is read from a local folder of its files if one is given, and else from the model hub's copy, which
is downloaded once into the hub's cache. Files are Parquet, JSONL or plain text.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from sdtt_jax.data.config import DataConfig
from sdtt_jax.data.corpora import SUFFIXES, documents
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
    """

    repo: str
    splits: Mapping[str, tuple[str, ...]]
    text_field: str = "text"
    detokenize: str = "none"
    revision: str = "main"


CONVERTED = "refs/convert/parquet"


def _converted(repo: str, config: str, splits: Sequence[str], **fields: str) -> NamedText:
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
    "wikitext2": _converted("Salesforce/wikitext", "wikitext-2-v1", _ALL, detokenize="wikitext"),
    "wikitext103": _converted(
        "Salesforce/wikitext", "wikitext-103-v1", _ALL, detokenize="wikitext"
    ),
    "lm1b": _converted("dvruette/lm1b", "default", ("train", "test"), detokenize="lm1b"),
    "lambada": _converted("EleutherAI/lambada_openai", "default", ("test",), detokenize="lambada"),
    "ag_news": _converted("fancyzhx/ag_news", "default", ("train", "test")),
    "pubmed": _converted(
        "armanc/scientific_papers",
        "pubmed",
        _ALL,
        text_field="article",
        detokenize="scientific_papers",
    ),
    "arxiv": _converted(
        "armanc/scientific_papers",
        "arxiv",
        _ALL,
        text_field="article",
        detokenize="scientific_papers",
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
        `SPLIT/`; None takes the hub's copy.

    Raises:
      ConfigError: no such set, split or file; the message says which file to put where.
      DataError: the hub cannot be reached, or a file is damaged or lacks the text field.
    """
    if name not in NAMED_TEXTS:
        raise ConfigError(f"text set {name!r} is unknown; choose one of {', '.join(NAMED_TEXTS)}.")
    text = NAMED_TEXTS[name]
    if split not in text.splits:
        raise ConfigError(f"{name} has no split {split!r}; it has {', '.join(text.splits)}.")
    for path in _fetch(name, split) if folder is None else _local(name, split, Path(folder)):
        config = DataConfig(
            corpus=str(path), text_field=text.text_field, detokenize=text.detokenize
        )
        yield from documents(config)


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
