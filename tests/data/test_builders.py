"""Shards. Oracles: TFDS's own reader and its own writer."""

import json
import subprocess
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from sdtt_jax.data import builders


def write(folder, rows, num_shards, split="train"):
    """Rows of one split in shards, as a preparation writes them."""
    prefix = builders.record_prefix(rows.shape[1], rows.dtype)
    stops = builders.shard_ends(len(rows), num_shards)
    target = folder / builders.FOLDER
    target.mkdir(parents=True)
    paths = []
    for number, (start, stop) in enumerate(zip((0, *stops), stops, strict=False)):
        paths.append(target / builders.shard_name(split, number, len(stops)))
        builders.write_shard(paths[-1], prefix, rows[start:stop], stop - start)
    lengths = np.diff((0, *stops)).tolist()
    size = len(prefix) + rows[0].nbytes
    builders.write_info(folder, rows.shape[1], rows.dtype, {split: lengths}, size)
    return target, paths


@pytest.mark.parametrize(("dtype", "num_shards"), [(np.uint16, 2), (np.int32, 5), (np.int32, 9)])
def test_tfds_reads_the_tokens_in_order_and_they_end_their_records(tmp_path, dtype, num_shards):
    """With more shards than records, too."""
    rows = np.arange(35, dtype=dtype).reshape(5, 7)
    folder, paths = write(tmp_path, rows, num_shards)
    source = tfds.builder_from_directory(str(folder)).as_data_source("train")
    np.testing.assert_array_equal([example["tokens"] for example in source], rows)
    raw = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
    assert [record[-rows[0].nbytes :] for record in raw] == [row.tobytes() for row in rows]
    assert len(paths) == min(num_shards, 5)


class PackedTokens(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Sequences of token ids of equal length, one a record."""

    VERSION = tfds.core.Version(builders.VERSION)
    pkg_dir_path = None
    rows = np.arange(40, dtype=np.uint16).reshape(10, 4)

    def _info(self):
        tokens = tfds.features.Tensor(shape=(4,), dtype=np.uint16, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"tokens": tokens}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate({"tokens": row} for row in self.rows)


def test_the_shards_are_those_that_tfds_would_write(tmp_path):
    twin = PackedTokens(data_dir=tmp_path / "twin", file_format=builders.FILE_FORMAT)
    config = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    twin.download_and_prepare(download_config=config)
    _, paths = write(tmp_path / "ours", twin.rows, num_shards=3)
    theirs = sorted(twin.data_path.glob("*array_record*"))
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in theirs]
    ours, theirs = (
        json.loads((folder / "dataset_info.json").read_text())
        for folder in (paths[0].parent, twin.data_path)
    )
    differing = {"moduleName", "releaseNotes", "downloadSize"}
    assert {name: ours[name] for name in ours if name not in differing} == {
        name: theirs[name] for name in theirs if name not in differing
    }


def test_very_many_records_are_grouped_so_that_their_index_is_small():
    sizes = {records: builders.group_size(records) for records in (0, 1, 2**23, 2**23 + 1, 10**8)}
    assert sizes == {0: 1, 1: 1, 2**23: 1, 2**23 + 1: 2, 10**8: 16}
    assert all(records / group <= builders.MOST_GROUPS for records, group in sizes.items())


def test_an_error_in_the_source_passes_through(tmp_path):
    def broken():
        yield np.zeros(4, np.int32)
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match=r"^the source broke$"):
        builders.write_shard(tmp_path / "x", b"", broken(), 2)


def test_no_tensorflow_is_loaded_and_workers_do_not_wait_for_jax():
    code = "import sys, sdtt_jax.data; print({'tensorflow', 'jax'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def test_a_folder_is_found_whatever_the_encoding_of_the_locale(tmp_path):
    """Oracle: its name in UTF-8. As `LC_ALL=C PYTHONUTF8=0` reads that, it ended in a TypeError."""
    rows = np.arange(6, dtype=np.uint16).reshape(2, 3)
    write(tmp_path / "caf\udcc3\udca9", rows, 1)
    [path] = (tmp_path / "café" / builders.FOLDER).glob("*array_record*")
    read = ArrayRecordReader(str(path))
    assert read.num_records() == 2
