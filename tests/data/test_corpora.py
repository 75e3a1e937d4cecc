import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from sdtt_jax.data import DataConfig
from sdtt_jax.data.corpora import (
    bible_documents,
    documents,
    held_out_digests,
    split_documents,
)
from sdtt_jax.errors import ConfigError, DataError


def _splits(config):
    held_out = held_out_digests(config)
    return [list(split_documents(config, split, held_out)) for split in ("train", "validation")]


def test_the_bible_is_1189_chapters_of_clean_text():
    # Oracle: the number of chapters of the Protestant canon.
    chapters = list(bible_documents())
    assert len(chapters) == 1189
    assert chapters[0].startswith(
        "In the beginning God created the heavens and the earth. Now the earth was formless"
    )
    assert chapters[-1].endswith("Amen.")
    job, psalm = chapters[477:479]
    assert job.endswith("So Job died, being old and full of days.")
    assert psalm.startswith("Blessed is the man who doesn't walk")
    text = "\n".join(chapters)
    assert 4_000_000 < len(text) < 4_100_000
    assert not re.search(r"[0-9`\[\]]|  |\t", text)


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
        assert list(documents(DataConfig(corpus=str(path), text_field="body"))) == texts


def test_documents_are_detokenised_before_they_are_normalised(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a well @-@ known thing", "utf-8")
    config = DataConfig(corpus=str(path), detokenize="wikitext", normalize="text8")
    assert list(documents(config)) == ["a well known thing"]


def test_a_quarter_of_the_documents_is_held_out_and_none_is_on_both_sides(tmp_path):
    texts = [f"document {index % 40}" for index in range(80)]  # Every document twice.
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    train, validation = _splits(DataConfig(corpus=str(path), validation_fraction=0.25))
    assert len(set(validation)) == 10
    assert set(train) | set(validation) == set(texts)
    assert not set(train) & set(validation)
    assert train == [text for text in texts if text in set(train)]


def test_which_documents_are_held_out_does_not_depend_on_their_order(tmp_path):
    texts = [f"document {index}" for index in range(50)]
    sides = []
    for order in (texts, texts[::-1]):
        path = tmp_path / f"{order[0]}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in order), "utf-8")
        sides.append(set(_splits(DataConfig(corpus=str(path)))[1]))
    assert sides[0] == sides[1]


def test_a_single_document_gives_its_tail_cut_at_a_space(tmp_path):
    path = tmp_path / "x.txt"
    words = [f"word{index}" for index in range(1000)]
    path.write_text(" ".join(words), "utf-8")
    [[train], [validation]] = _splits(DataConfig(corpus=str(path), validation_fraction=0.1))
    assert train.split() + validation.split() == words
    assert len(validation) == pytest.approx(0.1 * path.stat().st_size, abs=10)


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
        list(documents(DataConfig(corpus=str(path))))


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
        list(documents(DataConfig(corpus=str(path))))


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    texts = [f"{index} some text to be stored" for index in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet is damaged"):
        list(documents(DataConfig(corpus=str(path))))


def test_a_corpus_that_is_nowhere_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.corpus: .*nowhere does not exist"):
        list(documents(DataConfig(corpus=str(tmp_path / "nowhere"))))
    with pytest.raises(ConfigError, match=r"data\.corpus: the folder .* holds no \.txt"):
        list(documents(DataConfig(corpus=str(tmp_path))))
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"data\.corpus: .*x\.docx is not a \.txt"):
        list(documents(DataConfig(corpus=str(tmp_path / "x.docx"))))
