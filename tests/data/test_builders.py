import subprocess
import sys

import grain
import numpy as np
import pytest

from sdtt_jax.data import builders


def packed(sources, folder, rows):
    return builders.PackedTokens(sources, folder, rows.shape[1], rows.dtype)


def test_every_split_is_written(tmp_path):
    rows = np.arange(40, dtype=np.int32).reshape(10, 4)
    sources = {"train": lambda: rows, "validation": lambda: rows[:3]}
    folder = builders.build(packed(sources, tmp_path, rows), num_shards=4)
    assert len(builders.open_source(folder, "train")) == 10
    assert len(builders.open_source(folder, "validation")) == 3


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_tokens_come_back_in_order_and_end_their_records(tmp_path, dtype):
    rows = np.arange(35, dtype=dtype).reshape(5, 7)
    builder = packed({"train": lambda: rows}, tmp_path, rows)
    folder = builders.build(builder, num_shards=2)
    source = builders.open_source(folder, "train")
    np.testing.assert_array_equal([example["tokens"] for example in source], rows)
    raw = grain.sources.ArrayRecordDataSource(
        [str(path) for path, _ in builders.shards(folder, "train")]
    )
    assert [record[-rows[0].nbytes :] for record in raw] == [row.tobytes() for row in rows]


def test_shards_are_listed_with_their_records(tmp_path):
    rows = np.zeros((10, 4), np.int32)
    builder = packed({"train": lambda: rows}, tmp_path, rows)
    shards = builders.shards(builders.build(builder, num_shards=3), "train")
    assert sum(records for _, records in shards) == 10
    assert len(shards) == 3
    assert all(path.is_file() for path, _ in shards)


def test_more_shards_than_records(tmp_path):
    rows = np.arange(8, dtype=np.int32).reshape(2, 4)
    builder = packed({"train": lambda: rows}, tmp_path, rows)
    folder = builders.build(builder, num_shards=5)
    source = builders.open_source(folder, "train")
    np.testing.assert_array_equal([example["tokens"] for example in source], rows)


def test_an_error_in_the_source_passes_through_and_leaves_nothing_finished(tmp_path):
    rows = np.zeros((1, 4), np.int32)

    def broken():
        yield rows[0]
        raise ValueError("the source broke")

    builder = packed({"train": broken}, tmp_path, rows)
    with pytest.raises(ValueError, match=r"^the source broke$"):
        builders.build(builder, num_shards=1)
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_building_prints_nothing(tmp_path, capfd):
    rows = np.zeros((1, 4), np.int32)
    builders.build(packed({"train": lambda: rows}, tmp_path, rows), num_shards=1)
    assert capfd.readouterr() == ("", "")


def test_no_tensorflow_is_loaded():
    code = "import sys, sdtt_jax.data; print('tensorflow' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
