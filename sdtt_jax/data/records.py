"""A folder of prepared data: what `info.json` says of it, and the records of its ArrayRecord shards."""

import bisect
import contextlib
import dataclasses
import errno
import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.data.tokenizer import Tokenizer
from sdtt_jax.errors import DataError, first_line
from sdtt_jax.formats import read_json
from sdtt_jax.paths import as_path, is_remote

INFO_FILE = "info.json"
# Dtypes that ids may be stored in.
DTYPES = ("uint16", "int32")
_PREPARE_AGAIN = "remove the data folder and prepare the data again"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its path within the data folder, its split, and its expected contents."""

    path: str
    split: str
    records: int
    bytes: int


class Records:
    """The stored sequences of a split, with errors that name the file.

    Seeking and reading without threads takes 8 µs for a record. Reading a list of records, as Grain's own
    source does, copies the file's whole index each time: 9 ms of CPU time at a million records.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard], length: int, dtype: np.dtype):
        self._shards = shards
        self._paths = [directory / shard.path for shard in shards]
        self._length, self._dtype = length, np.dtype(dtype)
        self._ends = list(itertools.accumulate(shard.records for shard in shards))
        self._size, self._record_bytes = self._ends[-1], 0
        _allow_open(len(shards))
        self._readers = list(map(self._open, self._paths, shards))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._size

    @property
    def bytes(self) -> int:
        return self._size * self._length * self._dtype.itemsize

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Sequences at `indices`, `[n]` int64 numbers of sequences that exist: `[n, length]`, as stored."""
        wanted = indices.tolist()
        size = self._length * self._dtype.itemsize
        rows = np.empty((len(wanted), self._length), self._dtype)
        # In the order of the files, where neighbours are decoded together.
        for place in np.argsort(indices, kind="stable"):
            # The one feature of a record is its last field, so its bytes are the record's end.
            rows[place] = np.frombuffer(self.record(wanted[place])[-size:], self._dtype)
        return rows

    def record(self, index: int) -> Any:
        """The raw bytes of a record."""
        number = bisect.bisect_right(self._ends, index)
        path = self._paths[number]
        try:
            with self._lock:
                reader = self._readers[number]
                reader.seek(index - self._ends[number] + self._shards[number].records)
                record = reader.read()
        except Exception as error:
            raise DataError(f"{path} is damaged ({_reason(error)}); {_PREPARE_AGAIN}.") from None
        # All records are as long as the first one read, which TFDS also decodes.
        size = self._record_bytes = self._record_bytes or len(record)
        if len(record) != size or size < self._length * self._dtype.itemsize:
            raise DataError(f"{path} is damaged (a record of another length); {_PREPARE_AGAIN}.")
        return record

    def _open(self, path: Path, shard: Shard) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        if is_remote(path):
            raise DataError(f"{path} cannot be read in its bucket; copy the data folder to a disk.")
        if not path.is_file():
            raise DataError(f"{path} is missing; {_PREPARE_AGAIN}.")
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
        except OSError as error:
            # Of too many open files ArrayRecord says, if anything, that there are no records.
            remedy = "; raise `ulimit -n`, or prepare with fewer data.num_shards"
            many = error.errno == errno.EMFILE
            raise DataError(f"{path} cannot be read: {error.strerror}{remedy * many}.") from None
        if size != shard.bytes:
            raise DataError(f"{path} has {size} bytes instead of {shard.bytes}; {_PREPARE_AGAIN}.")
        options = "readahead_buffer_size:0,max_parallelism:0"
        try:
            reader = ArrayRecordReader(
                os.fsencode(path), options=options, file_reader_buffer_size=2**15
            )
            found = reader.num_records()
        except Exception as error:  # ArrayRecord raises bare, often empty, RuntimeErrors.
            raise DataError(f"{path} is damaged ({_reason(error)}); {_PREPARE_AGAIN}.") from None
        if found != shard.records:
            raise DataError(
                f"{path} holds {found} records instead of {shard.records}; {_PREPARE_AGAIN}."
            )
        return reader


def _allow_open(files: int) -> None:
    """Raises this process's limit of open files by so many, if the system lets it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft + files, hard))


def _reason(error: Exception) -> str:
    return first_line(error, "its checksums do not match")[:200]


def read_info(directory: str | Path) -> dict[str, Any]:
    """The content of a finished data folder's `info.json`; `DataError` if it is missing or damaged."""
    path = as_path(directory) / INFO_FILE
    if not path.exists():
        of_run = as_path(directory) / "data"
        hint = f"; give {of_run}" if (of_run / INFO_FILE).exists() else ""
        raise DataError(f"{path} is missing: {directory} holds no prepared data{hint}.")
    content = read_json(path, DataError, _PREPARE_AGAIN, "is damaged")
    try:
        length = content["info"]["length"]
        good = type(length) is int and length > 0 and content["dtype"] in DTYPES
        good = good and all(type(content.get(name, {})) is dict for name in ("data", "tokenizer"))
        shards = [Shard(**shard) for shard in content["shards"]]
        good = good and all(_is_sound(shard) for shard in shards)
    except (TypeError, KeyError):
        good = False
    if not good:
        raise DataError(f"{path} is damaged; {_PREPARE_AGAIN}.")
    return dict(content)


def made_with(tokenizer: Tokenizer, content: Mapping[str, Any]) -> bool:
    """Whether data were made with a tokenizer, by the content of their `info.json`.

    The digest is of the vocabulary alone: the same one may read texts that are normalised in another way.
    """
    normalize = content.get("data", {}).get("normalize", tokenizer.normalize)
    told = content.get("tokenizer_digest"), normalize
    return told == (tokenizer.digest, tokenizer.normalize)


def _is_sound(shard: Shard) -> bool:
    """Whether the fields of a shard have the right types, and its path stays within the folder."""
    path, sizes = as_path(shard.path), (shard.records, shard.bytes)
    inside = not path.is_absolute() and ".." not in path.parts
    return inside and all(type(size) is int and size >= 0 for size in sizes)


def refuse_extra(directory: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Refuses a folder with a shard that `info.json` does not list: it may belong to other data.

    A file whose name begins with a full stop is none: `written_whole` leaves it if its process is killed.
    """
    known = {directory / shard["path"] for shard in shards}
    for folder in sorted({path.parent for path in known}):
        for path in sorted(folder.glob("*.array_record*")):
            if path not in known and not path.name.startswith("."):
                raise DataError(
                    f"{path} is not one of the shards that {INFO_FILE} lists; move it away, "
                    f"or {_PREPARE_AGAIN}."
                )


def check_decoding(directory: Path, shards: Sequence[Shard], split: str, records: Records) -> None:
    """Checks the loader's reading of the bytes against TFDS's own decoder, on one record."""
    from sdtt_jax.data import builders  # imports TFDS, which takes half a second

    folder = (directory / shards[0].path).parent
    record = records.record(0)
    try:
        announced, decoded = builders.decoded_by_tfds(folder, split, record)
    except Exception as error:  # of TFDS, JSON or protobuf
        raise DataError(
            f"{folder} cannot be read by TFDS ({_reason(error)}); {_PREPARE_AGAIN}."
        ) from None
    if announced != len(records):
        raise DataError(
            f"{directory} announces {announced} {split} records but its shards hold "
            f"{len(records)}; {_PREPARE_AGAIN}."
        )
    [read] = records.read(np.array([0]))
    if not np.array_equal(decoded, read):
        raise DataError(
            f"{directory / shards[0].path} holds records of another format; {_PREPARE_AGAIN}."
        )
