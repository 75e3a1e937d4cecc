"""Parts of files, and bad input. Oracles: the rows that were written, in plain Python."""

import bz2
import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from sdtt_jax.data import DataConfig, TokenizerConfig, prepare, reading
from sdtt_jax.data.corpora import documents
from sdtt_jax.data.reading import Fields, Part, Piece, plan, read_file
from sdtt_jax.errors import DataError

TEXTS = [f"document {index} " + "of some words " * (index % 7) for index in range(60)]


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def zst(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(path, texts, **options):
    pyarrow.parquet.write_table(
        pyarrow.table({"id": range(len(texts)), "text": texts}), path, **options
    )


def rows(files):
    parts = plan(files, "train")
    pieces = [piece for part in parts for piece in part.pieces]
    return len(parts), [row for piece in pieces for row in read_file(piece, Fields())]


def test_samples_tell_a_changed_file_from_a_copied_one(tmp_path, monkeypatch):
    """Of 25 bytes, two are read at the start, at each tenth and at the end. Oracle: which bytes these are."""
    monkeypatch.setattr(reading, "PART_BYTES", 10)
    monkeypatch.setattr(reading, "_SAMPLE_BYTES", 2)
    path, content = tmp_path / "a.jsonl", bytes(range(25))

    def samples(changed):
        path.write_bytes(changed)
        return reading.samples_digest(plan([path], "train"))

    original = samples(content)
    os.utime(path, (0, 0))
    assert reading.samples_digest(plan([path], "train")) == original
    seen = [at for at in range(25) if samples(content[:at] + b"x" + content[at + 1 :]) != original]
    assert seen == [0, 1, 10, 11, 20, 21, 23, 24]
    assert samples(content + b"x") != original
    path.unlink()
    reading.samples_digest([Part("train", (Piece(".jsonl", str(path), 0, -1, 0),))])


@pytest.mark.parametrize("part_bytes", [1, 37, 200, 1_000, 10**9])
def test_parts_in_their_order_are_the_files(tmp_path, monkeypatch, part_bytes):
    """No matter where a byte range begins: within a line, at its first byte, at a blank line."""
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS[:20]) + b"\n\n" + lines(TEXTS[20:30]))
    parquet(tmp_path / "b.parquet", TEXTS[30:50], row_group_size=3)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS[50:])))
    monkeypatch.setattr(reading, "PART_BYTES", part_bytes)
    count, found = rows(sorted(tmp_path.iterdir()))
    assert found == TEXTS
    assert count > 9 if part_bytes <= 200 else count < 9


@pytest.mark.parametrize(
    ("name", "pack"),
    [("x.jsonl.gz", gzip.compress), ("x.json.gz", gzip.compress), ("x.JSONL.zst", zst),
     ("x.jsonl.bz2", bz2.compress)],
)  # fmt: skip
def test_compressed_lines_are_read(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(lines(TEXTS)))
    assert list(documents(DataConfig(str(tmp_path)))) == [text for text in TEXTS if text.strip()]


@pytest.mark.parametrize("end", ["", "more", "cut", "damaged"])
@pytest.mark.parametrize(
    ("codec", "pack"), [("gz", gzip.compress), ("zst", zst), ("bz2", bz2.compress)]
)
def test_files_of_several_streams_are_read_to_their_end(tmp_path, codec, pack, end):
    """As parallel compressors write them, empty ones too. Oracle: each stream by itself; what is none is a
    fault. An empty stream of bzip2 ended in a traceback."""
    second = pack(lines(TEXTS[20:]))
    damaged = {"more": second + b"garbage", "cut": second[:-5], "damaged": b"?" + second[1:]}
    path = tmp_path / f"x.jsonl.{codec}"
    path.write_bytes(pack(lines(TEXTS[:20])) + pack(b"") + damaged.get(end, second))
    _, found = rows([path])
    if not end:
        assert found == TEXTS
        return
    assert [row for row in found[:-1] if row not in TEXTS] == []
    assert f"{path} cannot be read: " in str(found[-1])


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_rows_of_another_subset_are_left_out(tmp_path, name):
    """Parquet, which is how the hub converts The Pile, used to be taken whole."""
    content = [
        {"text": "mine", "meta": {"set": "a"}},
        {"text": "yours", "meta": {"set": "b"}},
        {"text": "of one subset only"},
    ]
    path = tmp_path / name
    if name == "x.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    [part] = plan([path], "test")
    found = list(read_file(part.pieces[0], Fields(subset=("meta.set", "a"))))
    assert found == ["mine", None, "of one subset only"]
    assert len(list(read_file(part.pieces[0], Fields()))) == 3


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "binary", "large_binary", "dictionary"]
)
def test_a_row_of_parquet_that_is_not_utf_8_costs_that_row_alone(tmp_path, kind):
    """Spark and PyArrow write such strings. Of the file, what follows used to be lost, as one fault.

    A dictionary is what Pandas' category and Polars' Categorical become; it and binary were no text at all.
    Oracles: the rows that were written, and the same rows as JSON lines.
    """
    written = [b"one", None, "a b \u00e9".encode(), *[b"more"] * 300, b"caf\xe9", b"last"]
    buffers = pyarrow.array(written, pyarrow.binary()).buffers()
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(written), buffers)
    dictionary = kind == "dictionary"
    column = column.dictionary_encode() if dictionary else column.cast(getattr(pyarrow, kind)())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_bytes(
        b"".join(b'{"text": %b}\n' % (b'"%b"' % row if row else b"null") for row in written)
    )
    (_, found), (_, lines_) = (rows([tmp_path / name]) for name in ("x.parquet", "x.jsonl"))
    good = [row.decode() if row and row != b"caf\xe9" else "" for row in written]
    for some in (found, lines_):
        assert ["" if isinstance(row, DataError) else row for row in some] == good
    assert [row.kind for row in found if isinstance(row, DataError)] == ["null", "invalid UTF-8"]
    assert "x.parquet, row 304, is not UTF-8 text: the byte at offset 3" in str(found[303])


@pytest.mark.parametrize("name", ["x.parquet", "README.txt"])
def test_a_file_that_can_hold_no_pairs_is_named(tmp_path, name):
    """The errors used to ask for a column 'prompt>completion', and for 20 lines, without the file's name."""
    path = tmp_path / name
    if name == "README.txt":
        path.write_text("Pairs of prompts and completions.")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["q"], "completion": ["a"]}), path)
    [part] = plan([path], "train")
    [fault] = read_file(part.pieces[0], Fields("prompt>completion"))
    assert f"{name} holds no pairs: prompts and completions are read from JSON lines" in str(fault)


def damage(folder):
    """Writes a corpus with a fault of every kind between good rows; returns how many faults of each kind."""
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(TEXTS))
    broken = gzip.compress(lines(TEXTS), mtime=0)
    (folder / "b.jsonl.gz").write_bytes(broken[: len(broken) // 2])
    parquet(folder / "c.parquet", TEXTS)
    (folder / "c.parquet").write_bytes((folder / "c.parquet").read_bytes()[:-100])
    (folder / "d.jsonl").write_bytes(
        b'{"text": "caf\xe9"}\n' + lines(["good"]) + b'{"text": \n{"body": "x"}\n{"text": 3}\n'
        b'{"text": "' + b"x" * 5_000 + b'"}\n' + lines(["", "good too"])
    )
    (folder / "e.txt").write_bytes(b"")
    (folder / "f.txt").write_bytes(b"caf\xe9")
    return {
        "broken gzip": 1,
        "broken Parquet": 1,
        "invalid UTF-8": 2,
        "not JSON": 1,
        "no text field": 1,
        "not text": 1,
        "long line": 1,
        "empty file": 1,
    }


def test_bad_input_is_counted_by_kind_and_named_up_to_the_limit(tmp_path, monkeypatch):
    """One fault more than allowed stops it; then the same command with another limit goes on."""
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 4_000)
    monkeypatch.setattr(reading, "PART_BYTES", 1_000)
    kinds = damage(tmp_path / "corpus")

    def run(**changes):
        config = DataConfig(str(tmp_path / "corpus"), length=8, deduplicate=True, **changes)
        tokenizer = TokenizerConfig(kind="gpt2")
        return prepare(config, tokenizer, tmp_path / "data", tmp_path / "tokenizer")

    with pytest.raises(DataError, match=r"b\.jsonl\.gz cannot be read: Compressed file ended"):
        run()
    with pytest.raises(DataError, match=r"number 9, but data\.skip_bad allows only 8"):
        run(skip_bad=sum(kinds.values()) - 1)
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.rglob(".*.json.*"))
    info = run(skip_bad=sum(kinds.values()))
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    taken = manifest["taken_away"]
    assert {kind: taken[f"bad: {kind}"] for kind in kinds} == kinds
    assert taken["empty"] == 1
    assert {kind: len(named) for kind, named in manifest["bad_input"].items()} == kinds
    [named] = manifest["bad_input"]["long line"]
    assert named.startswith(f"{tmp_path}/corpus/d.jsonl, line 6, is longer than 4000 bytes")
    # The rows of the broken gzip file before the break are copies of a.jsonl.
    assert info.num_documents == len(set(TEXTS)) + 2
    assert manifest["corpus"]["rows"] == (
        info.num_documents + sum(kinds.values()) + taken["empty"] + taken["duplicates"]
    )


def test_a_line_of_100_mb_is_passed_over_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 2**20)
    with (tmp_path / "x.jsonl").open("wb") as file:
        file.write(lines(["before"]))
        for _ in range(100):
            file.write(b"x" * 10**6)
        file.write(b"\n" + lines(["after"]))
    for part_bytes in (10**7, 10**9):
        monkeypatch.setattr(reading, "PART_BYTES", part_bytes)
        _, found = rows([tmp_path / "x.jsonl"])
        assert [found[0], found[-1], len(found)] == ["before", "after", 3]
        assert found[1].kind == "long line"
