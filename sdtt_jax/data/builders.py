"""Packed sequences as TFDS reads them, in ArrayRecord shards, without TensorFlow."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.utils import shard_utils

from sdtt_jax.errors import DataError
from sdtt_jax.paths import as_path, write_bytes

FILE_FORMAT = "array_record"
# The most groups of records in a split: a reader holds 11 bytes in memory for each.
MOST_GROUPS = 2**23
NAME, VERSION = "packed_tokens", "1.0.0"
# Where the shards are in a data folder.
FOLDER = f"{NAME}/{VERSION}"


def features(length: int, dtype: np.dtype) -> tfds.features.FeaturesDict:
    """What a record holds, as TFDS describes it: a sequence of this length and dtype."""
    # Encoded as bytes, a sequence is the last length * itemsize bytes of its record, so the loader can read
    # it without TFDS's decoder.
    tokens = tfds.features.Tensor(shape=(length,), dtype=dtype, encoding="bytes")
    return tfds.features.FeaturesDict({"tokens": tokens})


def shard_ends(records: int, num_shards: int) -> Sequence[int]:
    """Where each shard ends (exclusive), for at most `num_shards` shards, none of them empty."""
    return shard_utils.get_shard_boundaries(records, max(1, min(num_shards, records)))


def shard_name(split: str, number: int, count: int) -> str:
    """The name of the file of shard `number` of `count`."""
    return f"{NAME}-{split}.{FILE_FORMAT}-{number:05d}-of-{count:05d}"


def record_prefix(length: int, dtype: np.dtype) -> bytes:
    """The bytes that TFDS writes before each sequence; they depend on its length and dtype alone."""
    row = np.zeros(length, dtype)
    serialised: bytes = features(length, dtype).serialize_example({"tokens": row})
    return serialised[: -row.nbytes]


def group_size(records: int) -> int:
    """How many records of a split are compressed together: one, as TFDS does, unless there are very many.

    For 100 million records it is 16. The index that a reader holds then takes 70 MB instead of 1.1 GB, and
    reading a random record of 1024 tokens takes 62 µs of CPU time instead of 11.
    """
    return 1 << max(0, -(-records // MOST_GROUPS) - 1).bit_length()


def write_shard(
    path: Path, prefix: bytes, rows: Iterable[np.ndarray], records: int, group: int = 1
) -> None:
    """Writes a local file of records, and checks that it holds as many as there must be.

    `prefix` is from `record_prefix`, for the dtype of the `rows` `[length]`; `group` is from `group_size`.

    Raises:
      OSError: the disk is full, or something else kept the file from being written.
    """
    with _named_failure(path):
        writer = ArrayRecordWriter(os.fsencode(path), f"group_size:{group}")
    for row in rows:
        with _named_failure(path):
            writer.write(prefix + row.tobytes())
    with _named_failure(path):
        writer.close()
        reader = ArrayRecordReader(os.fsencode(path))
        written = reader.num_records()
        reader.close()
    if written != records:
        raise DataError(
            f"{path} holds {written} records instead of {records}; prepare the data again."
        )


@contextlib.contextmanager
def _named_failure(path: Path) -> Iterator[None]:
    """Turns ArrayRecord's errors, which do not say why, into one with the file and the free disk space."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"{path} could not be written ({error}); the disk has {free} bytes left"
        ) from None


def write_info(
    folder: Path,
    length: int,
    dtype: np.dtype,
    shards: Mapping[str, Sequence[int]],
    record_bytes: int,
) -> None:
    """Writes the metadata that TFDS needs to read the shards into a data folder, local or in a bucket.

    `length` and `dtype` are those of a sequence; `shards` gives each split's numbers of records by shard.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder / FOLDER, dataset_name=NAME, split=None, filetype_suffix=FILE_FORMAT
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(lengths),
            num_bytes=sum(lengths) * record_bytes,
            filename_template=template.replace(split=split),
        )
        for split, lengths in shards.items()
    ]
    with tempfile.TemporaryDirectory() as temporary:
        info = tfds.core.DatasetInfo(
            builder=DatasetIdentity(NAME, tfds.core.Version(VERSION), temporary, __name__),
            description="Sequences of token ids of equal length, one a record.",
            features=features(length, dtype),
            # A batch is a function of (seed, step), so the order of records is part of the data.
            disable_shuffling=True,
        )
        info.set_file_format(FILE_FORMAT)
        info.set_splits(tfds.core.splits.SplitDict(splits))
        info.write_to_directory(temporary)
        for path in as_path(temporary).glob("*.json"):
            write_bytes(folder / FOLDER / path.name, path.read_bytes())


def decoded_by_tfds(
    folder: str | os.PathLike[str], split: str, record: bytes
) -> tuple[int, np.ndarray]:
    """The number of records of a written split according to TFDS, and the tokens that it reads in one."""
    info = tfds.builder_from_directory(os.fspath(folder)).info
    decoded: Any = info.features.deserialize_example_np(record)
    return int(info.splits[split].num_examples), decoded["tokens"]
