"""Documents of local text, JSONL and Parquet files.

Everything here is a generator over documents, so a corpus need not fit in memory.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sdtt_jax.data.normalize import PROMPT_END
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.paths import decoded, parse_json, text_lines


class Found(NamedTuple):
    """The files that a path stands for.

    Attributes:
      files: those that are read, in the order of their paths.
      others: files of other kinds beside them, hidden ones not counted.
      is_folder: whether the path is a folder.
    """

    files: list[Path]
    others: list[Path]
    is_folder: bool

    def __str__(self) -> str:
        """How many are read of how many, and what the others are."""
        total = len(self.files) + len(self.others)
        kinds = sorted({path.suffix or path.name for path in self.others})
        left_out = f" (not read: {_names(kinds)})" if kinds else ""
        return f"{len(self.files)} of {total} files{left_out}"


def find_files(path: Path) -> Found:
    """The files that an existing path stands for: itself, or those of a folder and of the folders in it.

    Links are followed, each folder and file once. What is hidden, and what is in a hidden folder, is a file
    manager's or an editor's and not the user's text.

    Raises:
      ConfigError: it is no file of a known kind, or a folder without any.
      DataError: a link leads nowhere, or a folder cannot be listed.
    """
    kinds = ", ".join(SUFFIXES)
    _refuse_dangling(path)
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"data.corpus: {path} is not a {kinds} file.")
        return Found([path], [], is_folder=False)
    seen: dict[str, Path] = {}
    _walk(path, {os.path.realpath(path)}, seen)
    found = Found([], [], is_folder=True)
    for file in sorted(seen.values()):
        (found.files if _is_read(file) else found.others).append(file)
    if not found.files:
        raise ConfigError(f"data.corpus: the folder {path} holds no {kinds} file.")
    return found


def _walk(folder: Path, folders: set[str], files: dict[str, Path]) -> None:
    """Adds the files below a folder to `files`, by their real paths, and the folders in it to `folders`."""
    try:
        # Links come last, so that a file is known by its own name where it has one here.
        entries = sorted(folder.iterdir(), key=lambda entry: (entry.is_symlink(), entry))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        _refuse_dangling(entry)
        real = os.path.realpath(entry)
        if not entry.is_dir():
            # A model hub's cache keeps files without suffixes, and links to them that have one.
            if real not in files or not _is_read(files[real]):
                files[real] = entry
        elif real not in folders:
            folders.add(real)
            _walk(entry, folders, files)


def _refuse_dangling(path: Path) -> None:
    if not path.exists():
        raise DataError(
            f"{path} is a link to {os.path.realpath(path)}, which is not there; mend or remove it."
        )


def _is_read(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def read_files(paths: Iterable[Path], text_field: str) -> Iterator[str]:
    """The documents of files: a text file is one, and so is each line of JSONL and row of Parquet.

    Args:
      paths: files whose suffix is one of `SUFFIXES`, in any case.
      text_field: name of the text in the lines of JSONL and the columns of Parquet files.

    Raises:
      DataError: a file is empty, damaged, not UTF-8, or lacks the text field.
    """
    for path in paths:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; remove it or give a file that holds text.")
        yield from _READERS[path.suffix.lower()](path, text_field)


def _text_documents(path: Path, text_field: str) -> Iterator[str]:
    del text_field
    yield decoded(path.read_bytes(), str(path)).removeprefix("\ufeff").strip()


def _json_documents(path: Path, text_field: str) -> Iterator[str]:
    for where, line in text_lines(path):
        value = parse_json(line, where + ",", remedy="each line must be one JSON object")
        yield _json_text(value, text_field, where + ",")


def _json_text(value: Any, text_field: str, where: str) -> str:
    """The text of a field, or of the two of `prompt>completion` with `PROMPT_END` between them."""
    names = text_field.split(">")
    texts = [_json_field(value, name.strip(), where) for name in names]
    if len(texts) > 1 and any(PROMPT_END in text for text in texts):
        raise DataError(f"{where} holds the character U+001E, which ends a prompt here; remove it.")
    return PROMPT_END.join(texts)


def _json_field(value: Any, text_field: str, where: str) -> str:
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object but {type(value).__name__}.")
    if text_field not in value:
        raise DataError(
            f"{where} has no field {text_field!r} (it has {_names(value)}); "
            "rename the one that holds the text, or for training set data.text_field to it."
        )
    text = value[text_field]
    if not isinstance(text, str):
        raise DataError(f"{where} field {text_field!r} holds {type(text).__name__}, not text.")
    return text


def _parquet_documents(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {_first_line(error)}.") from None
    with file:
        schema = file.schema_arrow
        if text_field not in schema.names:
            raise DataError(
                f"{path} has no column {text_field!r} (it has {_names(schema.names)}); "
                "rename the one that holds the text, or for training set data.text_field to it."
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


def _names(names: Iterable[object]) -> str:
    listed = sorted(map(str, names))
    return ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "") if listed else "none"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _text_documents,
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}
SUFFIXES = tuple(_READERS)
