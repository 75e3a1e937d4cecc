import subprocess
import sys

import grain
import numpy as np
import pytest

from sdtt_jax.data import builders


def test_documents_come_back_in_order(tmp_path):
    texts = [f"document {index} ß 日" for index in range(100)]
    sources = {"train": lambda: texts, "validation": lambda: texts[:3]}
    folder = builders.build(builders.Documents(sources, tmp_path), num_shards=4)
    source = builders.open_source(folder, "train")
    assert [example["text"].decode() for example in source] == texts
    assert len(builders.open_source(folder, "validation")) == 3


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_tokens_come_back_in_order_and_end_their_records(tmp_path, dtype):
    rows = np.arange(35, dtype=dtype).reshape(5, 7)
    builder = builders.PackedTokens({"train": lambda: rows}, tmp_path, 7, np.dtype(dtype))
    folder = builders.build(builder, num_shards=2)
    source = builders.open_source(folder, "train")
    np.testing.assert_array_equal([example["tokens"] for example in source], rows)
    raw = grain.sources.ArrayRecordDataSource(
        [str(path) for path, _ in builders.shards(folder, "train")]
    )
    assert [record[-rows[0].nbytes :] for record in raw] == [row.tobytes() for row in rows]


def test_shards_are_listed_with_their_records(tmp_path):
    rows = np.zeros((10, 4), np.int32)
    builder = builders.PackedTokens({"train": lambda: rows}, tmp_path, 4, rows.dtype)
    shards = builders.shards(builders.build(builder, num_shards=3), "train")
    assert sum(records for _, records in shards) == 10
    assert len(shards) == 3
    assert all(path.is_file() for path, _ in shards)


def test_more_shards_than_records(tmp_path):
    rows = np.arange(8, dtype=np.int32).reshape(2, 4)
    builder = builders.PackedTokens({"train": lambda: rows}, tmp_path, 4, rows.dtype)
    folder = builders.build(builder, num_shards=5)
    source = builders.open_source(folder, "train")
    np.testing.assert_array_equal([example["tokens"] for example in source], rows)


def test_an_error_in_the_source_passes_through_and_leaves_nothing_finished(tmp_path):
    def broken():
        yield "text"
        raise ValueError("the source broke")

    builder = builders.Documents({"train": broken}, tmp_path)
    with pytest.raises(ValueError, match=r"^the source broke$"):
        builders.build(builder, num_shards=1)
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_building_prints_nothing(tmp_path, capfd):
    builders.build(builders.Documents({"train": lambda: ["a"]}, tmp_path), num_shards=1)
    assert capfd.readouterr() == ("", "")


def test_no_tensorflow_is_loaded():
    code = "import sys, sdtt_jax.data; print('tensorflow' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
