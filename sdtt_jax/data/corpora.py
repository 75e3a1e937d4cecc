"""The table of corpora, by name, that training and evaluation read from; how a corpus is divided."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sdtt_jax.config import choose, require
from sdtt_jax.data.config import DataConfig
from sdtt_jax.data.detokenize import DETOKENIZERS
from sdtt_jax.data.embedded import bible_chapters
from sdtt_jax.data.files import SUFFIXES, Found, find_files, read_files
from sdtt_jax.data.normalize import NORMALIZERS, without_traces_of_files
from sdtt_jax.data.published import Published
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.paths import as_path

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION)
# Below this number of different documents, whole documents are too coarse a unit to hold out.
FEWEST_DOCUMENTS = 20
_SPACE = re.compile(r"\s+")
# Wraps a pass over documents to report its progress, given its purpose and characters (0: unknown).
Track = Callable[[Iterable[str], str, int], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A named text and how it is read.

    Attributes:
      name: what `data.corpus` and `--held_out` call it.
      source: where its texts are: a function that starts a pass over them, or a published data set. A text is
        a row of the set's files: a sentence of PTB, a line of WikiText, an article elsewhere.
      splits: names of its splits; one, "train", where nobody has divided it.
      detokenize: name of its detokenizer in `DETOKENIZERS`.
      licence: as its publisher states it.
      own_files: of the user's own corpus.
    """

    name: str
    source: Callable[[], Iterator[str]] | Published
    splits: tuple[str, ...] = (TRAIN,)
    detokenize: str = "none"
    licence: str = "not stated"
    own_files: Found | None = None

    @property
    def held_out(self) -> str | None:
        """Its own split for evaluation, or None if it has none."""
        return next((split for split in (VALIDATION, TEST) if split in self.splits), None)

    def texts(self, split: str, folder: Path | None = None) -> Iterator[str]:
        """The raw texts of a split, from `folder` or wherever they are found.

        Raises:
          ConfigError: no such split, or the corpus is none whose files lie in a folder.
        """
        choose(f"split of {self.name}", split, self.splits)
        if isinstance(self.source, Published):
            return self.source.texts(self.name, split, folder)
        require(folder is None, f"{self.name} is no published corpus; give no folder of its files.")
        return self.source()

    def files(self, split: str, folder: Path | None = None) -> str:
        """How many files of how many a split is read from; "" if it is no folder of the user's."""
        found = self.own_files
        if isinstance(self.source, Published):
            found = self.source.found(self.name, split, folder)
        return str(found) if found is not None and found.is_folder else ""


_ALL = (TRAIN, VALIDATION, TEST)
_WIKIPEDIA = "CC BY-SA 3.0"


def _published(repo: str, config: str, text_field: str = "text", **fields: Any) -> Published:
    """A data set in the hub's own conversion to Parquet."""
    return Published(repo, f"{config}/{{split}}/*.parquet", text_field, **fields)


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus("world_english_bible", bible_chapters, licence="public domain"),
        Corpus(
            "openwebtext",
            # The hub converts only the first 5 GB of a set to Parquet, so the set's own files are taken.
            Published(
                "Skylion007/openwebtext",
                "*/{split}-*.parquet",
                revision="main",
                tfds=("skylion007__openwebtext/plain_text", "text"),
            ),
            licence="CC0 1.0 for the collection; the texts are their authors'",
        ),
        Corpus(
            "ptb",
            _published("ptb-text-only/ptb_text_only", "penn_treebank", "sentence"),
            _ALL,
            detokenize="ptb",
            licence="of the Linguistic Data Consortium",
        ),
        *(
            Corpus(name, _published("Salesforce/wikitext", config), _ALL, "wikitext", _WIKIPEDIA)
            for name, config in (
                ("wikitext2", "wikitext-2-raw-v1"),
                ("wikitext103", "wikitext-103-raw-v1"),
            )
        ),
        Corpus(
            "lm1b",
            _published("dvruette/lm1b", "default", tfds=("lm1b", "text")),
            (TRAIN, TEST),
            detokenize="lm1b",
        ),
        Corpus(
            "lambada",
            _published("EleutherAI/lambada_openai", "default", tfds=("lambada", "passage")),
            (TEST,),
            detokenize="lambada",
            licence="MIT",
        ),
        Corpus(
            "ag_news",
            _published("fancyzhx/ag_news", "default", tfds=("ag_news_subset", "description")),
            (TRAIN, TEST),
        ),
        Corpus(
            "wiki40b",
            _published("google/wiki40b", "en", tfds=("wiki40b/en", "text")),
            _ALL,
            licence=_WIKIPEDIA,
        ),
        *(
            Corpus(
                name,
                _published(
                    "armanc/scientific_papers",
                    name,
                    "article",
                    tfds=(f"scientific_papers/{name}", "article"),
                ),
                _ALL,
                detokenize="scientific_papers",
            )
            for name in ("pubmed", "arxiv")
        ),
    )
}


def find_corpus(name: str, text_field: str = "text") -> Corpus:
    """The corpus of that name, or the user's own at that path.

    Args:
      name: of `CORPORA`, or the path of a .txt, .jsonl or .parquet file or of a folder of them; of a folder
        that is called like a corpus, give a path with a slash, `./openwebtext`.
      text_field: of the user's own files, the field or column that holds the text.

    Raises:
      ConfigError: there is neither such a name nor such a path.
    """
    if name in CORPORA:
        return CORPORA[name]
    path = as_path(name)
    if not path.exists():
        raise ConfigError(
            f"data.corpus: {name} does not exist; give the path of a {', '.join(SUFFIXES)} file or of a "
            f"folder of them, or one of the known corpora: {', '.join(CORPORA)}."
        )
    found = find_files(path)
    return Corpus(name, functools.partial(read_files, found.files, text_field), own_files=found)


def documents(
    config: DataConfig, split: str = TRAIN, folder: str | Path | None = None
) -> Iterator[str]:
    """The documents of a split, detokenised and normalised, in order, empty ones left out.

    Args:
      config: names the corpus and the normalisation; `detokenize` and `text_field` are for the user's own
        files, for a corpus of the table brings its own.
      split: one of the corpus's splits.
      folder: holds the files of a published corpus, `SPLIT.parquet` or the like.

    Raises:
      ConfigError: no such corpus or split, or no such file in `folder`.
      DataError: the text is nowhere, or a file is empty, damaged, not UTF-8, or lacks the text field.
    """
    corpus = find_corpus(config.corpus, config.text_field)
    own = corpus.detokenize if config.detokenize == "none" else config.detokenize
    detokenize, normalize = DETOKENIZERS[own], NORMALIZERS[config.normalize]
    empty = True
    for raw in corpus.texts(split, None if folder is None else as_path(folder)):
        text = normalize(detokenize(without_traces_of_files(raw)))
        if text.strip():
            empty = False
            yield text
    if empty:
        raise DataError(
            f"data.corpus: {config.corpus} holds no text"
            + (f" after normalize={config.normalize!r}." if config.normalize != "none" else ".")
        )


def files_read(config: DataConfig) -> str:
    """How many files of how many the splits are read from; "" if it is no folder of the user's."""
    corpus = find_corpus(config.corpus, config.text_field)
    if corpus.own_files is not None:
        return corpus.files(TRAIN)
    splits = {split: corpus.files(split) for split in (TRAIN, corpus.held_out) if split}
    return ", ".join(f"{split}: {files}" for split, files in splits.items() if files)


def untracked(texts: Iterable[str], purpose: str, characters: int) -> Iterable[str]:
    """Returns `texts`: the `Track` that reports no progress."""
    del purpose, characters
    return texts


def divide(config: DataConfig, track: Track = untracked) -> Callable[..., Iterator[str]]:
    """Divides a corpus: returns `documents_of(split, purpose="")`, which starts a pass over a split.

    A corpus that has a split for evaluation keeps it. Of any other, the documents with the smallest digests
    of their text are held out: which they are does not depend on their order, and copies of one document
    never land on both sides. Of very few documents each is cut once, at a space, and its tail held out.

    Args:
      config: names the corpus, and how much of it is held out.
      track: wraps every pass over the text, to report its progress.

    Raises:
      ConfigError: there is no such corpus.
      DataError: it cannot be read, or is so small that one of the splits would be empty.
    """
    held_out_split = find_corpus(config.corpus, config.text_field).held_out
    if held_out_split is not None:
        own = {TRAIN: TRAIN, VALIDATION: held_out_split}
        return lambda split, purpose="": iter(track(documents(config, own[split]), purpose, 0))
    digests: set[int] = set()
    characters = 0
    for text in track(documents(config), "reading the corpus", 0):
        digests.add(_digest(text))
        characters += len(text)
    count = min(max(1, round(len(digests) * config.validation_fraction)), len(digests) - 1)
    held_out = frozenset(sorted(digests)[:count])
    few = len(digests) < FEWEST_DOCUMENTS

    def part(text: str, split: str) -> str:
        if not few:
            return text if (_digest(text) in held_out) == (split == VALIDATION) else ""
        cut = _cut_position(text, config.validation_fraction)
        return text[cut:].lstrip() if split == VALIDATION else text[:cut].rstrip()

    def documents_of(split: str, purpose: str = "") -> Iterator[str]:
        whole = track(documents(config), purpose, characters)
        return filter(None, (part(text, split) for text in whole))

    for split in SPLITS:
        if few and not any(part(text, split) for text in documents(config)):
            raise DataError(
                f"data.corpus is too small to be divided: no text is left for the {split} split."
            )
    return documents_of


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _cut_position(text: str, fraction: float) -> int:
    wanted = max(1, round(len(text) * (1 - fraction)))
    space = _SPACE.search(text, wanted)
    return space.start() if space and space.end() < len(text) else wanted
