"""JSON files and the lines of text files. Oracle: the values and lines that were written."""

import bz2
import gzip
import json
import lzma
import sys

import pytest

from sdtt_jax.data import DataConfig
from sdtt_jax.data.corpora import documents
from sdtt_jax.errors import DataError
from sdtt_jax.formats import parse_json, read_json, text_lines

BOM = b"\xef\xbb\xbf"


def test_lines_end_at_a_line_feed_alone(tmp_path):
    path = tmp_path / "x.jsonl"
    values = ["one\u2028two\u0085\u2029three\x1c\x1d\x1e\x0b\x0c", "a\r\nb"]
    lines = [json.dumps(value, ensure_ascii=False).encode() for value in values]
    path.write_bytes(BOM + lines[0] + b"\r\n\n \t\n" + lines[1])
    found = {where: parse_json(line, where) for where, line in text_lines(path)}
    assert found == {f"{path}, line 1": values[0], f"{path}, line 4": values[1]}


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


UTF_16 = r"UTF-16 or no text \(it has NUL bytes\); convert it to UTF-8"


@pytest.mark.parametrize("reader", ["lines", ".jsonl", ".txt"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"{}"), r"compressed \(gzip\); decompress it"),
        (bz2.compress(b"{}"), r"compressed \(bzip2\); decompress it"),
        (lzma.compress(b"{}"), r"compressed \(xz\); decompress it"),
        (b"\x28\xb5\x2f\xfd\x00", r"compressed \(zstd\); decompress it"),
        (b"PK\x03\x04\x00", r"compressed \(zip\); decompress it"),
        (b"PAR1\x15\x04\x15", "Parquet; convert it"),
        (_LFS, "a pointer of Git LFS; fetch"),
        *(("and so on".encode(f"utf-16{end}"), UTF_16) for end in ("-le", "-be", "")),
        ("и вот так".encode("utf-16-le"), UTF_16),
    ],
    ids=["gzip", "bzip2", "xz", "zstd", "zip", "parquet", "lfs", "le", "be", "marked", "russian"],
)
def test_a_file_of_another_format_says_what_it_is(tmp_path, content, kind, reader):
    """A corpus and a file of lines. Pointers were read as texts, and so was UTF-16, with a NUL per letter."""
    path = tmp_path / f"x{'.jsonl' if reader == 'lines' else reader}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"/x\.\w+ is {kind}"):
        next(text_lines(path) if reader == "lines" else documents(DataConfig(str(path))))


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(BOM + b'{"a": "\\ud83d\\ude00 \\\\ud800"}')
    assert read_json(path) == {"a": "\U0001f600 \\ud800"}


# Where Python reports the error in `1,}`: at the comma from 3.13 on, at the brace in earlier versions.
COLUMN = 3 if sys.version_info >= (3, 13) else 4
TOO_DEEP = "Stack overflow" if sys.version_info >= (3, 14) else "recursion"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a":\n 1,}', rf"x\.json is not JSON \(.* at line 2, column {COLUMN}\)"),
        (b'{"a": "\xff"}', r"x\.json is not JSON \(.*can't decode byte 0xff"),
        (b'["\\uD83D"]', r"x\.json is not JSON \(it holds half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"9" * 5000, "4300 digits"),
        (b"[" * 100_000, TOO_DEEP),
        (b"", "Expecting value at column 1"),
        (b"[]", r"x\.json holds no JSON object"),
        (b"null", r"x\.json holds no JSON object"),
    ],
)
def test_what_is_no_json_is_named_with_the_reason(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(path)
