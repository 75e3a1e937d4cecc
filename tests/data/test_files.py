"""Files of text. Oracle: what was written to them."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from sdtt_jax.data import DataConfig
from sdtt_jax.data.corpora import documents
from sdtt_jax.errors import DataError


def test_text_files_of_a_folder_are_one_document_each_in_the_order_of_paths(tmp_path):
    (tmp_path / "b.txt").write_text("second\r\nline\n", "utf-8")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.jsonl").write_text('{"text": "third"}\n\n{"text": " "}\n', "utf-8")
    (tmp_path / ".hidden.txt").write_text("no", "utf-8")
    (tmp_path / "notes.md").write_text("no", "utf-8")
    assert list(documents(DataConfig(corpus=str(tmp_path)))) == ["first", "second\nline", "third"]


def test_json_lines_and_parquet_hold_the_same_documents(tmp_path):
    texts = ["one", "zwei ß", "三"]
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), "utf-8")
    table = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "body": texts}), table)
    for path in (lines, table):
        assert list(documents(DataConfig(str(path), text_field="body"))) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", r"x\.txt is empty"),
        ("x.txt", b" \n ", "holds no text"),
        ("x.txt", b"caf\xe9", r"x\.txt is not UTF-8 text: the byte at offset 3 "),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2, is not UTF-8.*offset 24 "),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl, line 2, is not JSON"),
        ("x.jsonl", b'["a"]\n', "line 1, is not a JSON object but list"),
        ("x.jsonl", b'{"body": "a"}\n', r"line 1, has no field 'text' \(it has body\)"),
        ("x.jsonl", b'{"text": 3}\n', "line 1, field 'text' holds int, not text"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', "line 1, .*surrogate"),
        ("x.parquet", b"PAR1 no", r"x\.parquet is not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(documents(DataConfig(str(path))))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"body": ["a"]}, r"has no column 'text' \(it has body\)"),
        ({"text": [1]}, "column 'text' holds int64, not text"),
        ({"text": ["a", None]}, "row 2, column 'text' is null"),
    ],
)
def test_a_parquet_column_that_cannot_be_read_is_named(tmp_path, column, message):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table(column), path)
    with pytest.raises(DataError, match=message):
        list(documents(DataConfig(str(path))))


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    texts = [f"{index} some text to be stored" for index in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet is damaged"):
        list(documents(DataConfig(str(path))))
