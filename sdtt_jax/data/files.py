"""Documents of local text, JSONL and Parquet files.

Everything here is a generator over documents, so a corpus need not fit in memory.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sdtt_jax.errors import ConfigError, DataError


def find_files(path: Path) -> list[Path]:
    """The files that an existing path stands for: itself, or those of a folder in the order of their paths.

    Raises:
      ConfigError: it is no file of a known kind, or a folder without any.
    """
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
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"data.corpus: {path} is not a {kinds} file.")
    return [path]


def read_files(paths: Iterable[Path], text_field: str) -> Iterator[str]:
    """The documents of files: a text file is one, and so is each line of JSONL and row of Parquet.

    Args:
      paths: files whose suffix is one of `SUFFIXES`.
      text_field: name of the text in the lines of JSONL and the columns of Parquet files.

    Raises:
      DataError: a file is empty, damaged, not UTF-8, or lacks the text field.
    """
    for path in paths:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; remove it or give a file that holds text.")
        yield from _READERS[path.suffix](path, text_field)


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
    # A byte-order mark and Windows line ends are artefacts of the file, not of the text.
    yield text.removeprefix("\ufeff").replace("\r\n", "\n").strip()


def _json_documents(path: Path, text_field: str) -> Iterator[str]:
    with path.open("rb") as lines:
        offset = 0
        for number, raw in enumerate(lines, start=1):
            where = f"{path}, line {number},"
            line = _decode(raw, where, offset)
            offset += len(raw)
            if line.strip():
                yield _json_text(line, text_field, where)


def _json_text(line: str, text_field: str, where: str) -> str:
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
        raise DataError(f"{where} field {text_field!r} holds {type(text).__name__}, not text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{where} field {text_field!r} holds half of a surrogate pair (\\ud8xx), "
            "which is not a character; mend the line."
        ) from None
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
