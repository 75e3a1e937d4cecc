"""From files to rows of text, in parts that several workers can read, each on its own.

A corpus is cut into parts by its files alone: JSON lines by ranges of bytes, Parquet by row groups, data of
TFDS by records. So the parts do not depend on the workers, and in their order they make up the corpus. A row
or file that cannot be read appears as a `BadInputError` in its place; the caller decides what to do about it.
"""

import codecs
import contextlib
import functools
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from sdtt_jax.data.files import SUFFIXES, codec_of, kind_of_file, listed
from sdtt_jax.data.normalize import PROMPT_END, require_characters
from sdtt_jax.data.opening import open_file, size_of
from sdtt_jax.errors import DataError, first_line
from sdtt_jax.formats import decoded, other_format, parse_json
from sdtt_jax.paths import as_path, is_remote

# The size of a part of uncompressed text or Parquet: half a minute for one worker with GPT-2's vocabulary.
PART_BYTES = 64 * 2**20
# How much of each PART_BYTES of a file `samples_digest` reads.
_SAMPLE_BYTES = 2**16
# No corpus in the table has a longer line of JSON.
MAX_LINE_BYTES = 64 * 2**20
# Kinds of pieces, besides the suffixes of files.
TFDS, NAMED = "tfds", "named"


class Piece(NamedTuple):
    """A range of one source."""

    # One of `files.SUFFIXES`, TFDS, or NAMED for a corpus whose source in the table is a function.
    kind: str
    path: str  # of the file or TFDS's folder, or the corpus's name
    # start, stop: bytes of JSON lines, row groups of Parquet, records of TFDS; stop -1 is the end.
    start: int
    stop: int
    bytes: int  # its size, to measure progress


class Part(NamedTuple):
    """What one worker reads at a time: pieces of a single split, in order."""

    split: str
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)


class Fields(NamedTuple):
    """Where a row's text is."""

    # The JSON field or Parquet column that holds it; or two JSON fields, `prompt>completion`, for a prompt
    # and what follows it.
    text: str = "text"
    feature: str = "text"  # the feature of TFDS that holds it
    # A field of JSON lines or column of Parquet (with dots for nested objects) and a value; rows in which it
    # has another value are left out. None takes all rows.
    subset: tuple[str, str] | None = None


class BadInputError(DataError):
    """A row or file that cannot be read.

    Attributes:
      kind: a few words by which such faults are counted.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return BadInputError, (self.kind, str(self))


# A row's text, a fault in its place, or None for a row of another subset.
ReadRow = str | BadInputError | None


def plan(files: Iterable[str | os.PathLike[str]], split: str) -> list[Part]:
    """Cuts the files of a split, in their order, into parts that depend on nothing else.

    Small files are read together up to PART_BYTES; large ones are cut if they can be.
    """
    return gather((piece for file in files for piece in _pieces(str(file))), split)


def gather(pieces: Iterable[Piece], split: str) -> list[Part]:
    """Joins the pieces of a split into parts of at least PART_BYTES."""
    parts, waiting, size = [], [], 0
    for piece in pieces:
        waiting.append(piece)
        size += piece.bytes
        if size >= PART_BYTES:
            parts.append(Part(split, tuple(waiting)))
            waiting, size = [], 0
    return parts + ([Part(split, tuple(waiting))] if waiting else [])


def ranges(kind: str, path: str, sizes: Iterable[int]) -> Iterator[Piece]:
    """Cuts a source whose items have these sizes, in bytes, into pieces of at least PART_BYTES."""
    start, size, stop = 0, 0, 0
    for stop, item in enumerate(sizes, start=1):
        size += item
        if size >= PART_BYTES:
            yield Piece(kind, path, start, stop, size)
            start, size = stop, 0
    if stop > start:
        yield Piece(kind, path, start, stop, size)


def _pieces(path: str) -> Iterator[Piece]:
    kind = kind_of_file(path)
    assert kind is not None
    try:
        size = size_of(path)
        if kind == ".parquet" and size:
            with open_file(path) as file:
                found = _parquet(file).metadata
            sizes = [found.row_group(i).total_byte_size for i in range(found.num_row_groups)]
            yield from ranges(kind, path, sizes)
            return
    except (OSError, ValueError):
        size = 0  # Reading the file will show what is wrong.
    if kind != ".jsonl" or size <= PART_BYTES or codec_of(path):
        yield Piece(kind, path, 0, -1, size)
        return
    for start in range(0, size, PART_BYTES):
        stop = min(start + PART_BYTES, size)
        yield Piece(kind, path, start, stop, stop - start)


def samples_digest(parts: Iterable[Part]) -> str:
    """SHA-256 of the sizes of the files on this machine and of samples of them: the start, the end, and 64 kB
    of each 64 MB between them.

    It tells a file that was written anew from one that was only copied, which a time does not. Files up to
    64 kB are read whole, of a large one a thousandth. A change between the samples that keeps the size is
    not seen.
    """
    pieces = (piece for part in parts for piece in part.pieces)
    digest = hashlib.sha256()
    for path in dict.fromkeys(piece.path for piece in pieces if piece.kind in SUFFIXES):
        # A file that cannot be read will be named when it is read.
        with contextlib.suppress(OSError):
            if not is_remote(path):
                size = size_of(path)
                digest.update(size.to_bytes(8))
                with as_path(path).open("rb") as file:
                    for start in sorted(
                        {*range(0, size, PART_BYTES), max(0, size - _SAMPLE_BYTES)}
                    ):
                        file.seek(start)
                        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def read_file(piece: Piece, fields: Fields) -> Iterator[ReadRow]:
    """The rows of a piece of a file: a whole text file, each line of JSON, or each row of Parquet."""
    path, broken = piece.path, "broken file"
    try:
        if size_of(path) == 0:
            yield BadInputError(
                "empty file", f"{path} is empty; remove it or give a file that holds text."
            )
            return
        if codec := codec_of(path):
            broken = f"broken {codec}"
        with open_file(path) as file:
            begin = b"" if piece.start or piece.kind == ".parquet" else file.peek(64)  # type: ignore[attr-defined]
            if other := other_format(begin):
                yield BadInputError("another format", f"{path} is {other}.")
                return
            yield from _READERS[piece.kind](file, piece, fields)
    except (OSError, EOFError, zlib.error) as error:
        yield BadInputError(broken, f"{path} cannot be read: {first_line(error)}.")


def _no_pairs(path: str) -> BadInputError:
    return BadInputError(
        "no text field",
        f"{path} holds no pairs: prompts and completions are read from JSON lines alone; convert it, or take "
        "it out of the folder.",
    )


def _text(file: IO[bytes], piece: Piece, fields: Fields) -> Iterator[ReadRow]:
    if ">" in fields.text:
        yield _no_pairs(piece.path)
        return
    text = _or_bad("invalid UTF-8", decoded, file.read(), piece.path)
    yield text.removeprefix("\ufeff").strip() if isinstance(text, str) else text


def _json_lines(file: IO[bytes], piece: Piece, fields: Fields) -> Iterator[ReadRow]:
    for where, offset, raw in _lines(file, piece):
        if raw is None:
            yield BadInputError("long line", f"{where}, is longer than {MAX_LINE_BYTES} bytes.")
            continue
        body = raw.removeprefix(codecs.BOM_UTF8)
        line = _or_bad(
            "invalid UTF-8", decoded, body, where + ",", DataError, offset + len(raw) - len(body)
        )
        if isinstance(line, BadInputError):
            yield line
        elif line.strip():
            remedy = "each line must be one JSON object"
            # Of a row's fields only its text must be characters: others may be cut within an emoji.
            parse = functools.partial(parse_json, remedy=remedy, halves=True)
            value = _or_bad("not JSON", parse, line, where + ",")
            bad = isinstance(value, BadInputError)
            yield value if bad else _json_text(value, fields, where + ",")


def _lines(file: IO[bytes], piece: Piece) -> Iterator[tuple[str, int, bytes | None]]:
    """Location, offset and bytes of each line that begins in the piece; no bytes if it is too long."""
    offset, number = piece.start, 1
    if offset:
        file.seek(offset - 1)
        offset += _skip_line(file) - 1
    while piece.stop < 0 or offset < piece.stop:
        raw = file.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        size, whole = len(raw), len(raw) <= MAX_LINE_BYTES
        if not whole and not raw.endswith(b"\n"):
            size += _skip_line(file)
        where = f"line {number}" if piece.start == 0 else f"the line at byte {offset}"
        yield f"{piece.path}, {where}", offset, raw if whole else None
        offset, number = offset + size, number + 1


def _skip_line(file: IO[bytes]) -> int:
    """Reads to the end of a line in bounded memory, and returns how many bytes that was."""
    count = 0
    while chunk := file.readline(2**20):
        count += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return count


def _json_text(value: Any, fields: Fields, where: str) -> ReadRow:
    """A row's text; for two fields, `prompt>completion`, both with `PROMPT_END` between them."""
    if not isinstance(value, dict):
        return BadInputError(
            "not JSON", f"{where} is not a JSON object but {type(value).__name__}."
        )
    if not _in_subset(value, fields):
        return None
    names = (
        [name.strip() for name in fields.text.split(">")] if ">" in fields.text else [fields.text]
    )
    texts = [_json_field(value, name, where) for name in names]
    bad = next((text for text in texts if isinstance(text, BadInputError)), None)
    if bad is None and len(texts) > 1 and any(PROMPT_END in text for text in texts):
        held = f"{where} holds the character U+001E, which ends a prompt here; remove it."
        bad = BadInputError("not text", held)
    return bad or PROMPT_END.join(texts)


def _in_subset(row: dict[str, Any], fields: Fields) -> bool:
    if fields.subset is None:
        return True
    found: Any = row
    for name in fields.subset[0].split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found in (None, fields.subset[1])


# What to do with a conversation, as in the column "messages" of many data sets.
_TURNS = (
    "; to train on conversations, write a line of JSON with two text fields for each answer, say prompt and "
    "completion, and set data.text_field='prompt>completion' and data.sequences='prompted'"
)


def _json_field(value: dict[str, Any], name: str, where: str) -> Any:
    if name not in value:
        held = listed(value).encode("utf-8", "backslashreplace").decode()
        return BadInputError(
            "no text field",
            f"{where} has no field {name!r} (it has {held}); rename the field that holds the text, "
            "or, for training, set data.text_field to its name.",
        )
    text = value[name]
    if not isinstance(text, str):
        turns = isinstance(text, list) and any(isinstance(turn, dict) for turn in text)
        held = f"{where} field {name!r} holds {type(text).__name__}, not text"
        return BadInputError("not text", f"{held}{_TURNS if turns else ''}.")
    bad = _or_bad("not text", require_characters, text)
    return text if bad is None else BadInputError("not text", f"{where} field {name!r}: {bad}")


def _parquet(file: IO[bytes]) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file)


def _parquet_rows(stream: IO[bytes], piece: Piece, fields: Fields) -> Iterator[ReadRow]:
    import pyarrow

    path, column = piece.path, fields.text
    try:
        file = _parquet(stream)
    except (pyarrow.ArrowInvalid, OSError) as error:
        yield BadInputError(
            "broken Parquet", f"{path} is not a readable Parquet file: {first_line(error)}."
        )
        return
    with file:
        names = file.schema_arrow.names
        if fault := _column_fault(file.schema_arrow, column, path):
            yield fault
            return
        told = (
            fields.subset[0].split(".")[0] if fields.subset else ""
        )  # says of which subset a row is
        columns = [column, told] if told in names else [column]
        groups = range(file.num_row_groups)[piece.start : None if piece.stop < 0 else piece.stop]
        row = sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
        try:
            for batch in file.iter_batches(256, row_groups=list(groups), columns=columns):
                subsets = batch.column(told).to_pylist() if told in names else itertools.repeat("")
                # A string that is not UTF-8 is one row's fault; `to_pylist` would raise for all of them.
                texts = batch.column(column).cast(pyarrow.large_binary()).to_pylist()
                for text, subset in zip(texts, subsets, strict=False):
                    row += 1
                    if subset and not _in_subset({told: subset}, fields):
                        yield None
                    elif text is None:
                        yield BadInputError(
                            "null", f"{path}, row {row}, column {column!r} is null."
                        )
                    else:
                        yield _or_bad("invalid UTF-8", decoded, text, f"{path}, row {row},")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            yield BadInputError(
                "broken Parquet", f"{path} is damaged after row {row}: {first_line(error)}."
            )


def _column_fault(schema: Any, column: str, path: str) -> BadInputError | None:
    """Why a file of this Arrow schema has no column of texts under that name; None if it has."""
    import pyarrow

    count = schema.names.count(column)
    if count == 1:
        kind = schema.field(column).type
        values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if str(values).removeprefix("large_").removesuffix("_view") in ("string", "binary"):
            return None
        listed_type = getattr(kind, "value_type", None)  # of a list
        turns = listed_type is not None and pyarrow.types.is_struct(listed_type)
        held = f"{path}, column {column!r} holds {kind}, not text"
        return BadInputError("not text", f"{held}{_TURNS if turns else ''}.")
    if count > 1:
        fault = (
            f"{path} has {count} columns {column!r}; rename all but the one that holds the text."
        )
    elif ">" in column:
        return _no_pairs(path)
    else:
        fault = (
            f"{path} has no column {column!r} (it has {listed(schema.names)}); rename the column that "
            "holds the text, or, for training, set data.text_field to its name."
        )
    return BadInputError("no text field", fault)


_READERS: dict[str, Callable[[IO[bytes], Piece, Fields], Iterator[ReadRow]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".parquet": _parquet_rows,
}


def _or_bad(kind: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, or its `DataError` as a `BadInputError` of the given kind."""
    try:
        return function(*arguments)
    except DataError as error:
        return BadInputError(kind, str(error))
