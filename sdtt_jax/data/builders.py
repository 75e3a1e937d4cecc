"""The TFDS builder that writes packed sequences as ArrayRecord, without TensorFlow."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils

from sdtt_jax.paths import as_path

FILE_FORMAT = "array_record"
# Split name -> function that starts a pass over its values.
Sources = Mapping[str, Callable[[], Iterable[Any]]]


class PackedTokens(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Sequences of token ids of equal length, one a record.

    Args:
      sources: of the sequences `[length]` of each split.
      data_dir: the data folder.
      length: tokens in a sequence.
      dtype: of the ids.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None  # No citation or checksum files lie beside this module.

    def __init__(
        self, sources: Sources, data_dir: str | os.PathLike[str], length: int, dtype: np.dtype
    ):
        self._sources = sources
        # As bytes a sequence is the last length * itemsize bytes of its record, which is what
        # lets the loader decode all of them at once.
        self._tokens = tfds.features.Tensor(shape=(length,), dtype=dtype, encoding="bytes")
        super().__init__(file_format=FILE_FORMAT, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"tokens": self._tokens}),
            # A batch is a function of (seed, step), so the order of records is part of the data.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {split: self._generate_examples(start) for split, start in self._sources.items()}

    def _generate_examples(self, start: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        for index, value in enumerate(start()):
            yield index, {"tokens": value}


@dataclasses.dataclass(frozen=True)
class _ShardConfig(shard_utils.ShardConfig):
    def get_number_shards(self, total_size: int, num_examples: int, *args: Any) -> int:
        # TFDS itself refuses to write fewer records than shards, as a short split would need.
        wanted = super().get_number_shards(total_size, num_examples, *args)
        return max(1, min(wanted, num_examples))


class _DownloadConfig(tfds.download.DownloadConfig):
    def get_shard_config(self) -> shard_utils.ShardConfig:
        return _ShardConfig(num_shards=self.num_shards)


def build(builder: PackedTokens, num_shards: int) -> str:
    """Writes the builder's records, at most `num_shards` files a split.

    Returns:
      The folder that `open_source` takes.

    Raises:
      Exception: whatever the sources raise; nothing that looks finished is left behind.
    """
    tfds.disable_progress_bar()
    # TFDS prints to standard output what the caller reports in its own way.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_config=_DownloadConfig(num_shards=num_shards, try_download_gcs=False)
        )
    return os.fspath(builder.data_dir)


def open_source(folder: str | os.PathLike[str], split: str) -> Any:
    """Random access to a written split: `len`, `[index]`, `__getitems__(indices)`."""
    return tfds.builder_from_directory(os.fspath(folder)).as_data_source(split)


def shards(folder: str | os.PathLike[str], split: str) -> list[tuple[Path, int]]:
    """Path and number of records of every file of a written split, in order."""
    info = tfds.builder_from_directory(os.fspath(folder)).info.splits[split]
    return [
        (as_path(folder) / name, records)
        for name, records in zip(sorted(info.filenames), info.shard_lengths, strict=True)
    ]
