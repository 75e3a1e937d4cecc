"""Files of text. Oracle: what was written to them."""

import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from sdtt_jax.data import DataConfig
from sdtt_jax.data.corpora import documents, files_read, find_corpus
from sdtt_jax.data.files import find_files, listed
from sdtt_jax.errors import ConfigError, DataError


def test_text_files_of_a_folder_are_one_document_each_in_the_order_of_paths(tmp_path):
    (tmp_path / "b.txt").write_text("second\r\nline\n", "utf-8")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.jsonl").write_text('{"text": "third"}\n\n{"text": " "}\n', "utf-8")
    (tmp_path / ".hidden.txt").write_text("no", "utf-8")
    (tmp_path / "notes.md").write_text("no", "utf-8")
    assert list(documents(DataConfig(corpus=str(tmp_path)))) == ["first", "second\nline", "third"]


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.parquet"])
def test_ends_of_lines_and_marks_of_order_are_the_files_and_not_the_texts(tmp_path, name):
    """Windows' and old Macs'; a second mark belongs to the text, as do other characters that end lines."""
    path, text = tmp_path / name, "\ufeffone\r\ntwo\rthree\n\r\nfour\u2028\x85\x0b\ufefffive"
    if name == "x.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), path)
    else:
        path.write_bytes((json.dumps({"text": text}) if name == "x.jsonl" else text).encode())
    read = "one\ntwo\nthree\n\nfour\u2028\x85\x0b\ufefffive"
    assert list(documents(DataConfig(str(path)))) == [read]


@pytest.fixture
def corpus(tmp_path):
    """A folder with everything that a folder can hold; the content of each file is its path."""
    folder = tmp_path / "corpus"
    (folder / "b" / ".git").mkdir(parents=True)
    (folder / ".old").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for path in ("A.TXT", "b/c.Txt", "../elsewhere/deep/d.txt", "../elsewhere/e", "f.txt.xz"):
        (folder / path).write_text(path, "utf-8")
    for path in (".hidden.txt", ".old/A.txt", "b/.git/x.txt"):
        (folder / path).write_text("hidden", "utf-8")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "up").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder / "b")
    (folder / "z.txt").symlink_to(folder / "A.TXT")
    (folder / "named.txt").symlink_to(tmp_path / "elsewhere" / "e")
    (folder / ".#lock.txt").symlink_to("user@host.1234")
    return folder


def test_a_folder_is_read_whole_through_its_links_and_each_file_once(corpus):
    """In a hub's cache, only the link to a file has its suffix."""
    texts = ["A.TXT", "../elsewhere/deep/d.txt", "b/c.Txt", "../elsewhere/e"]
    assert list(documents(DataConfig(str(corpus)))) == texts
    assert files_read(find_corpus(str(corpus))) == "4 of 5 files (not read: .xz)"
    for name in (str(corpus / "A.TXT"), DataConfig().corpus):
        assert files_read(find_corpus(name)) == ""


def test_a_folder_is_not_hidden_by_the_folders_above_it(tmp_path):
    for file in (tmp_path / ".cache" / "corpus" / "x.txt", tmp_path / ".cache" / ".y.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text", "utf-8")
    assert find_files(tmp_path / ".cache").files == [tmp_path / ".cache" / "corpus" / "x.txt"]
    assert len(find_files(tmp_path / ".cache" / ".y.txt").files) == 1


def test_of_many_names_the_first_eight_are_listed():
    """Oracle: written out."""
    assert listed("hgfedcba") == "a, b, c, d, e, f, g, h"
    assert listed("ihgfedcba") == "a, b, c, d, e, f, g, h, …"
    assert listed([]) == "none"


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_the_directory_of_a_run_is_not_its_text(tmp_path, above):
    """Its metrics and generated texts were read, and had a perplexity, also from below the text's folder."""
    run = tmp_path / "texts" / "runs" / "a"
    (run / "data").mkdir(parents=True)
    (tmp_path / "texts" / "text.txt").write_text("text", "utf-8")
    for name in ("metrics.jsonl", "data/info.json"):
        (run / name).write_text('{"text": "a"}', "utf-8")
    with pytest.raises(ConfigError, match=r"--held_out: .*/a is the directory of a run"):
        find_files((run / above).resolve(), "--held_out")


@pytest.mark.parametrize("name", ["x.txt", "folder", "loop"])
def test_a_link_that_leads_nowhere_is_named(corpus, name):
    (corpus / "b" / name).symlink_to(corpus / "b" / name if name == "loop" else "nowhere")
    with pytest.raises(DataError, match=f"b/{name} is a link to .*, which leads nowhere"):
        list(documents(DataConfig(str(corpus))))


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"caf\xe9/x.txt", b"x.caf\xe9"])
def test_a_name_that_is_not_utf_8_is_refused_or_shown_as_its_bytes(tmp_path, name):
    """JSON cannot hold it: a preparation began anew after a stop, and its manifest could not be read."""
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("text", "utf-8")
    (tmp_path / "good.txt").write_text("text", "utf-8")
    if name.endswith(b".txt"):
        with pytest.raises(DataError, match=r"The name of .*/caf\\xe9.* is not UTF-8"):
            find_files(tmp_path)
    else:
        assert str(find_files(tmp_path)) == r"1 of 2 files (not read: .caf\xe9)"


def test_a_name_in_utf_8_is_not_to_be_renamed_in_a_locale_of_another_encoding(tmp_path):
    """`LC_ALL=C PYTHONUTF8=0`, in which Python reads the name as here; it said to rename the file."""
    (tmp_path / "café.txt").write_text("text", "utf-8")
    with pytest.raises(
        DataError, match=r"The name of .*/café.txt is UTF-8, .* set PYTHONUTF8=1\.$"
    ):
        find_files(tmp_path / "caf\udcc3\udca9.txt")


def test_a_folder_of_hidden_files_holds_none(tmp_path):
    (tmp_path / ".x.txt").write_text("hidden", "utf-8")
    with pytest.raises(ConfigError, match=r"holds no \.txt, \.jsonl, \.parquet file"):
        find_files(tmp_path)


def test_only_the_text_of_a_line_must_be_characters(tmp_path):
    """A name that was cut within an emoji, which is nothing to a text, refused the line. Oracle: the text."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00", "author": "\\ud83d", "\\ude00": [1]}\n', "utf-8")
    assert list(documents(DataConfig(str(path)))) == ["\U0001f600"]


@pytest.mark.parametrize("field", ["body", " my text ", "a.b", "a", "é/b", "text.list.element"])
def test_json_lines_and_parquet_hold_the_same_documents(tmp_path, field):
    """Of a name with a space at its end, as converted tables have them, lines of JSON held no such field."""
    texts = ["one", "zwei ß", "三"]
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), "utf-8")
    table = tmp_path / "x.parquet"
    others = {"n": [1, 2, 3], "a": [{"b": "no"}] * 3} | {field: texts}
    pyarrow.parquet.write_table(pyarrow.table(others), table)
    for path in (lines, table):
        assert list(documents(DataConfig(str(path), text_field=field))) == texts


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
        ("x.jsonl", b'{"text": 3}\n', r"line 1, field 'text' holds int, not text\.$"),
        ("x.jsonl", b'{"text": ["a"]}\n', r"line 1, field 'text' holds list, not text\.$"),
        (
            "x.jsonl",
            b'{"text": [{"role": "user"}]}\n',
            r"not text; .*text_field='prompt>completion'",
        ),
        ("x.jsonl", b'{"text": "\\ud800"}\n', "line 1, field 'text': .*surrogate"),
        ("x.jsonl", b'\xef\xbb\xbf{"text": "a"}\n{"text": 1e}', "line 2, is not JSON .* column 11"),
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
        ({"text": [1]}, r"column 'text' holds int64, not text\.$"),
        ({"text": [["a"]]}, r"column 'text' holds list<.*>, not text\.$"),
        ({"text": [[{"role": "user"}]]}, "not text; .*text_field='prompt>completion'"),
        ({"text": ["a", None]}, "row 2, column 'text' is null"),
        ([("text", ["a"]), ("text", ["b"])], r"x\.parquet has 2 columns 'text'; rename all but"),
    ],
)
def test_a_parquet_column_that_cannot_be_read_is_named(tmp_path, column, message):
    path = tmp_path / "x.parquet"
    names, arrays = zip(*(column.items() if isinstance(column, dict) else column), strict=True)
    table = pyarrow.table([pyarrow.array(values) for values in arrays], names=names)
    pyarrow.parquet.write_table(table, path)
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
