"""Batches as a pure function of (seed, step), from ArrayRecord shards through Grain."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.paths import as_path, read_json

INFO_FILE = "info.json"
# Splits of at most this size are held in memory: a batch is then one gather.
CACHE_BYTES = 256 * 2**20
# Dtypes that ids may be stored in.
DTYPES = ("uint16", "int32")
_PREPARE_AGAIN = "remove the data folder and prepare the data again"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its path within the data folder, and what it must hold."""

    path: str
    split: str
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Split:
    """Sequences of one split, in random access.

    Attributes:
      name: `train` or `validation`.
      length: tokens in a sequence.
      cached: the sequences `[records, length]` in memory, or None if they are read as needed.
    """

    name: str
    length: int
    cached: np.ndarray | None
    _records: "_Records" = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self._records)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Sequences at `indices` `[n]`: int32 `[n, length]`."""
        if self.cached is not None:
            return self.cached[indices].astype(np.int32)
        return self._records.read(indices).astype(np.int32)

    def indices(
        self, seed: int, step: int, batch_size: int, rows: slice | None = None
    ) -> np.ndarray:
        """Which sequences batch `step` holds: int64 `[batch_size]`, or its `rows`.

        The batches of all steps, laid end to end, are epochs, each a random permutation of the
        split. An epoch's end may fall within a batch. Nothing but the arguments enters, so a
        resumed run needs no state and any number of hosts sees the same global batches.

        Args:
          seed: of the permutations, at least 0.
          step: number of the batch, from 0.
          batch_size: sequences of the global batch.
          rows: those of the batch that are wanted; all if None.
        """
        return shuffled(len(self), seed, step, batch_size, rows)

    def batch(self, seed: int, step: int, batch_size: int, rows: slice | None = None) -> np.ndarray:
        """The sequences of batch `step`: int32 `[batch_size, length]`, or its `rows`.

        Args:
          seed: of the permutations, at least 0.
          step: number of the batch, from 0.
          batch_size: sequences of the global batch.
          rows: a host's slice of them; all if None.
        """
        return self.gather(self.indices(seed, step, batch_size, rows))


def shuffled(
    size: int, seed: int, step: int, batch_size: int, rows: slice | None = None
) -> np.ndarray:
    """Which of `size` records batch `step` holds, as `Split.indices` says it: int64 `[batch_size]`.

    Args:
      size: how many records there are.
      seed: of the permutations, at least 0.
      step: number of the batch, from 0.
      batch_size: records of the global batch.
      rows: those of the batch that are wanted; all if None.
    """
    if batch_size < 1 or step < 0 or seed < 0:
        raise ConfigError(
            f"A batch needs batch_size >= 1, step >= 0 and seed >= 0, not {batch_size}, {step} and {seed}."
        )
    positions = range(step * batch_size, (step + 1) * batch_size)[rows or slice(None)]
    return np.array([_shuffled(size, seed, position) for position in positions], np.int64)


def _shuffled(size: int, seed: int, position: int) -> int:
    epoch, index = divmod(position, size)
    if size == 1:
        return 0
    import grain  # here, as in _Records: it takes 0.3 s, which commands that read no data need not wait

    return grain.experimental.index_shuffle(
        index, max_index=size - 1, seed=_epoch_seed(seed, epoch), rounds=4
    )


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _array_records(paths: Sequence[Path]) -> Any:
    import grain

    return grain.sources.ArrayRecordDataSource([str(path) for path in paths])


class _Records:
    """The raw sequences of a split's shards, with errors that name the file."""

    def __init__(self, directory: Path, shards: Sequence[Shard], length: int, dtype: np.dtype):
        self._directory, self._shards = directory, shards
        self._length, self._dtype = length, np.dtype(dtype)
        self._size = sum(shard.records for shard in shards)
        for shard in shards:
            self._check(shard)
        self._source = _array_records([directory / shard.path for shard in shards])
        if len(self._source) != self._size:
            raise DataError(
                f"{directory} holds {len(self._source)} records in its {shards[0].split} shards "
                f"instead of {self._size}; {_PREPARE_AGAIN}."
            )

    def __len__(self) -> int:
        return self._size

    @property
    def bytes(self) -> int:
        return self._size * self._length * self._dtype.itemsize

    def _check(self, shard: Shard) -> None:
        path = self._directory / shard.path
        if not path.is_file():
            raise DataError(f"{path} is missing; {_PREPARE_AGAIN}.")
        if path.stat().st_size != shard.bytes:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes instead of {shard.bytes}; {_PREPARE_AGAIN}."
            )

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Sequences `[n, length]` in the stored dtype."""
        wanted = [int(index) for index in indices]
        if not wanted:
            return np.empty((0, self._length), self._dtype)
        if min(wanted) < 0 or max(wanted) >= self._size:
            raise IndexError(f"sequence {wanted} of a split of {self._size}")
        try:
            records = self._source.__getitems__(wanted)
        except Exception as error:  # ArrayRecord raises bare, often empty, RuntimeErrors.
            raise self._damage(error) from None
        size = self._length * self._dtype.itemsize
        # The one feature of a record is its last field, so its bytes are the record's end.
        payload = b"".join(record[-size:] for record in records)
        return np.frombuffer(payload, self._dtype).reshape(len(wanted), self._length)

    def _damage(self, error: Exception) -> DataError:
        for shard in self._shards:
            path = self._directory / shard.path
            try:
                _array_records([path]).__getitems__(list(range(shard.records)))
            except Exception as damage:
                return DataError(f"{path} is damaged ({_reason(damage)}); {_PREPARE_AGAIN}.")
        return DataError(f"{self._directory} could not be read ({_reason(error)}).")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["its checksums do not match"])[0][:200]


def read_info(directory: str | Path) -> dict[str, Any]:
    """The content of a finished data folder's `info.json`.

    Raises:
      DataError: it is missing or damaged.
    """
    path = as_path(directory) / INFO_FILE
    if not path.exists():
        raise DataError(f"{path} is missing: {directory} holds no prepared data.")
    content = read_json(path, DataError, _PREPARE_AGAIN, "is damaged")
    try:
        length = content["info"]["length"]
        good = type(length) is int and length > 0 and content["dtype"] in DTYPES
        shards = [Shard(**shard) for shard in content["shards"]]
        good = good and all(_is_sound(shard) for shard in shards)
    except (TypeError, KeyError):
        good = False
    if not good:
        raise DataError(f"{path} is damaged; {_PREPARE_AGAIN}.")
    return dict(content)


def _is_sound(shard: Shard) -> bool:
    """Whether its fields are of their types, and its path stays within the folder."""
    path, sizes = as_path(shard.path), (shard.records, shard.bytes)
    inside = not path.is_absolute() and ".." not in path.parts
    return inside and all(type(size) is int and size >= 0 for size in sizes)


def open_split(directory: str | Path, split: str, cache_bytes: int = CACHE_BYTES) -> Split:
    """Opens a split that `prepare` wrote.

    Args:
      directory: the data folder.
      split: `train` or `validation`.
      cache_bytes: hold the split in memory if it is at most this large.

    Raises:
      DataError: no such split, or a shard is missing, of the wrong size or damaged, or there is one
        more than was written.
    """
    directory = as_path(directory)
    content = read_info(directory)
    shards = [Shard(**shard) for shard in content["shards"] if shard["split"] == split]
    if not shards:
        raise DataError(f"{directory} has no split {split!r}.")
    _refuse_extra(directory, content["shards"])
    length = content["info"]["length"]
    records = _Records(directory, shards, length, np.dtype(content["dtype"]))
    _check_decoding(directory, shards, split, records)
    cached = None
    if records.bytes <= cache_bytes:
        cached = records.read(np.arange(len(records)))
    return Split(split, length, cached, records)


def _refuse_extra(directory: Path, shards: Sequence[dict[str, Any]]) -> None:
    """With a further shard beside the known ones it would be uncertain which data these are."""
    known = {directory / shard["path"] for shard in shards}
    for folder in sorted({path.parent for path in known}):
        for path in sorted(folder.glob("*.array_record*")):
            if path not in known:
                raise DataError(
                    f"{path} is none of the shards that {INFO_FILE} lists; move it away, or {_PREPARE_AGAIN}."
                )


def _check_decoding(
    directory: Path, shards: Sequence[Shard], split: str, records: _Records
) -> None:
    """One record through TFDS's own decoder: guards the loader's reading of the bytes."""
    from sdtt_jax.data import builders  # imports TFDS, which takes half a second

    source = builders.open_source((directory / shards[0].path).parent, split)
    if len(source) != len(records):
        raise DataError(
            f"{directory} announces {len(source)} {split} records but its shards hold "
            f"{len(records)}; {_PREPARE_AGAIN}."
        )
    [decoded], [read] = source.__getitems__([0]), records.read(np.array([0]))
    if not np.array_equal(decoded["tokens"], read):
        raise DataError(
            f"{directory / shards[0].path} holds records of another format; {_PREPARE_AGAIN}."
        )
