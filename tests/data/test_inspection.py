"""The report on prepared data. Oracle: the sequences, counted in plain Python."""

import collections
import dataclasses
import html
import itertools
import json
import re
import shutil

import numpy as np
import pytest

from experiments.cli.overrides import Source, with_corpus
from sdtt_jax.data import (
    DataConfig,
    TokenizerConfig,
    inspection,
    load_tokenizer,
    open_split,
    prepare,
    train_tokenizer,
)
from sdtt_jax.data.inspection import inspect_data, summary
from sdtt_jax.data.loader import Split
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.ops.sequence_kinds import Sequences
from sdtt_jax.reporting.data_page import render_data
from tests.experiments.processes import call


@pytest.fixture(scope="module")
def found(prepared):
    return inspect_data(prepared.data, prepared.tokenizer, records=2)


def test_counts_lengths_and_tokens_are_those_of_the_sequences(prepared, found):
    split, tokenizer = open_split(prepared.data, "train"), load_tokenizer(prepared.tokenizer)
    stream = split.gather(np.arange(len(split))).ravel().tolist()
    said = found["splits"]["train"]
    assert said["sequences"] == prepared.info.num_train
    assert said["looked_at"] == said["tokens"] == len(stream)
    counts = collections.Counter(stream)
    del counts[tokenizer.eos_id]
    token, count = counts.most_common(1)[0]
    assert said["frequent"][0] == [token, tokenizer.pieces([token])[0], count / len(stream)]
    assert len(said["frequent"]) == 20  # of 27
    assert said["unknown"] == 0
    # In text8 every character is one byte and one token.
    assert said["bytes_per_token"] == pytest.approx(1, abs=0.001)
    ends = [-1] + [place for place, token in enumerate(stream) if token == tokenizer.eos_id]
    lengths = [stop - start - 1 for start, stop in itertools.pairwise(ends)]
    expected = collections.Counter(str(1 << (length - 1).bit_length()) for length in lengths)
    assert said["lengths"] == expected
    shown = [inspect_data(prepared.data, prepared.tokenizer, *more)["splits"]["train"]["texts"]
             for more in ((), (3, 0), (3, 1))]  # fmt: skip
    assert shown[0] == shown[1] != shown[2]
    assert len(shown[2]) == 3
    rows = {row[0]: row[1:] for row in summary(found)}
    documents = found["manifest"]["splits"]
    assert sum(documents[name]["documents"] for name in documents) == 40
    assert rows["sequences"][0] == f"{prepared.info.num_train:,}"


@pytest.mark.parametrize("kind", ["padded", "prompted"])
def test_padding_is_neither_a_document_nor_a_token(kind, write_jsonl, tmp_path):
    """Oracles: the same texts packed, of which only the stream's edges are lost; each pair by hand. Padding
    used to count as documents of one token."""
    texts = [f"text number {i} " + "abc " * (i % 9) for i in range(60)]
    config = DataConfig(str(write_jsonl(texts)), length=16)
    chars = TokenizerConfig(model_type="char", vocab_size=64)

    def said(config, name):
        where = tmp_path / name, tmp_path / f"{name}_tokenizer"
        info = prepare(config, chars, *where)
        return info, inspect_data(*where)["splits"]["train"]

    if kind == "padded":
        packed, expected = said(config, "packed")
        info, found = said(dataclasses.replace(config, sequences=kind), kind)
        assert info.characters_per_token == packed.characters_per_token
        missing = collections.Counter(found["lengths"])
        missing.subtract(expected["lengths"])
        assert set(missing.values()) <= {0, 1}
        assert sum(missing.values()) <= 2
        assert found["bytes_per_token"] == pytest.approx(expected["bytes_per_token"], rel=0.01)
        assert 0 <= found["looked_at"] - expected["looked_at"] < 16
        assert found["tokens"] > found["looked_at"]
    else:
        path = tmp_path / "pairs.jsonl"
        rows = [{"a": text[:5], "b": text[5:]} for text in texts]
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        fields = {"corpus": str(path), "text_field": "a>b", "sequences": kind, "length": 64}
        info, found = said(dataclasses.replace(config, **fields), kind)
        assert sum(found["lengths"].values()) == info.num_train
        assert set(found["lengths"]) <= {"16", "32", "64"}
        # BOS, which ends a prompt, was among the most frequent tokens, as "".
        assert all(text for _, text, _ in found["frequent"])
        # Each pair has BOS and EOS besides its characters.
        characters = round(info.characters_per_token * found["looked_at"])
        assert found["looked_at"] == characters + 2 * info.num_train
        assert info.num_characters == sum(map(len, texts))


def test_wrapped_sequences_are_counted_without_what_is_around_them(write_jsonl, tmp_path):
    """Oracle: the same stream in chunks, two tokens shorter. All sequences are shown, each once."""
    corpus, found = write_jsonl([f"text number {i} " + "abc " * (i % 9) for i in range(60)]), []
    chars = TokenizerConfig(model_type="char", vocab_size=64)
    for wrap in (False, True):
        where = tmp_path / f"data_{wrap}", tmp_path / f"tokenizer_{wrap}"
        prepare(DataConfig(str(corpus), length=14 + 2 * wrap, wrap=wrap), chars, *where)
        found.append(inspect_data(*where, records=1000)["splits"]["train"])
        split, tokenizer = open_split(where[0], "train"), load_tokenizer(where[1])
        rows = map(tokenizer.decode, split.gather(np.arange(len(split))))
        assert sorted(found[-1].pop("texts")) == sorted(rows)
    chunks, wrapped = found
    assert wrapped.pop("tokens") == chunks.pop("tokens") // 14 * 16
    # Measured on the first 32 sequences' worth of tokens, which is more of them.
    assert wrapped.pop("bytes_per_token") == pytest.approx(chunks.pop("bytes_per_token"), abs=0.01)
    assert wrapped == chunks


def _inspected(ids, tokenizer):
    """What is said of packed sequences of four tokens that hold these ids."""
    rows = np.reshape(np.array(ids, np.int32), (-1, 4))
    sequences = Sequences("packed", tokenizer.bos_id, tokenizer.eos_id)
    return inspection._split(Split("train", 4, rows, rows), tokenizer, sequences, 0, 0)


def test_short_documents_unknown_and_used_tokens_are_counted():
    """Oracle: written out. The vocabulary has unk, BOS, EOS and three letters, of which one is not used."""
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char"), ["aaabbc"])
    unk, eos, a, b = tokenizer.unk_id, tokenizer.eos_id, *tokenizer.encode("ab").tolist()
    documents = [[a], [a, b], [a, a, a], [a, a, a, b], [a, unk, a, a, b]]
    found = _inspected([token for ids in documents for token in (*ids, eos)], tokenizer)
    assert found["lengths"] == {"1": 1, "2": 1, "4": 2, "8": 1}
    assert found["frequent"] == [[a, "a", 11 / 20], [b, "b", 3 / 20], [unk, "⁇", 1 / 20]]
    assert (found["used"], found["unknown"], found["looked_at"]) == (4 / 6, 1 / 20, 20)
    assert found["bytes_per_token"] == (14 + len("⁇".encode())) / 20
    tokenizer.unk_id = eos  # as some published vocabularies have it
    assert _inspected([a, b, eos, a], tokenizer)["unknown"] == 0


def test_of_a_stretch_whole_documents_and_the_text_of_32_sequences_are_measured(monkeypatch):
    """Oracle: written out. Documents of three sequences, 12 of one-byte letters and 16 of two-byte ones, then
    eight of one sequence."""
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char"), ["aaé"])
    eos, a, e = tokenizer.eos_id, *tokenizer.encode("aé").tolist()
    ids = [*[*[a] * 11, eos] * 12, *[*[e] * 11, eos] * 16, *[*[e] * 3, eos] * 8]
    found = _inspected(ids, tokenizer)
    assert found["lengths"] == {"4": 8, "16": 28}
    # The first 32 sequences hold the end of ten documents.
    assert found["bytes_per_token"] == 118 / 128
    monkeypatch.setattr(inspection, "STRETCHES", 2)
    monkeypatch.setattr(inspection, "MAX_TOKENS", 4 * 70)
    found = _inspected(ids, tokenizer)
    # Sequences 0 to 34, and 57 to 91: whether the first document of these begins with them is not known.
    assert found["looked_at"] == 280
    assert found["lengths"] == {"4": 8, "16": 11 + 8}


@pytest.mark.parametrize(
    ("most", "stretches"),
    [
        (64, [range(4), range(32, 36), range(64, 68), range(96, 100)]),
        (8, [[0], [33], [66], [99]]),
        (400, [range(100)]),
    ],
)
def test_of_a_large_split_stretches_are_looked_at(monkeypatch, most, stretches):
    """Of 100 sequences of four tokens, evenly from the first to the last. Oracle: written out."""

    class Split(list):
        length, gather = 4, staticmethod(list)

    monkeypatch.setattr(inspection, "MAX_TOKENS", most)
    monkeypatch.setattr(inspection, "STRETCHES", 4)
    assert [*inspection._stretches(Split(range(100)))] == [list(rows) for rows in stretches]
    # Of fewer long sequences than stretches some were counted twice.
    monkeypatch.setattr(inspection, "MAX_TOKENS", 8)
    assert [*inspection._stretches(Split(range(3)))] == [[0], [1], [2]]


def test_a_file_that_was_changed_is_named(prepared, found, tmp_path):
    assert found["digests"] == "equal"
    data = shutil.copytree(prepared.data, tmp_path / "data")
    victim = next(data.rglob("*-validation.array_record-00001-*"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1  # in the padding, which ArrayRecord does not check
    victim.write_bytes(content)
    try:
        said = inspect_data(data, prepared.tokenizer)["digests"]
    except DataError as error:
        said = str(error)
    assert victim.name in said


def test_data_of_another_tokenizer_are_refused(prepared, tmp_path):
    data = shutil.copytree(prepared.data, tmp_path / "data")
    info = json.loads((data / "info.json").read_text())
    cased = {"data": info["data"] | {"normalize": "none"}}
    for other in ({"tokenizer_digest": "0"}, cased):
        (data / "info.json").write_text(json.dumps(info | other))
        with pytest.raises(DataError, match="is not the tokenizer of"):
            inspect_data(data, prepared.tokenizer)
    with pytest.raises(ConfigError, match=r"records must be a whole number, not 1\.5"):
        inspect_data(data, prepared.tokenizer, records=1.5)


def test_mask_in_data_of_earlier_versions_is_named(prepared, monkeypatch):
    """Their texts could spell it; this ended in a traceback."""

    def with_mask(*arguments):
        split = open_split(*arguments[:2])
        rows = split.gather(np.arange(len(split)))
        rows[3, 3] = prepared.info.vocab_size
        return dataclasses.replace(split, cached=rows)

    monkeypatch.setattr(inspection, "open_split", with_mask)
    with pytest.raises(DataError, match="train split holds MASK, token 30, which a text spelt"):
        inspect_data(prepared.data, prepared.tokenizer)


def test_the_page_shows_it_and_escapes_the_texts(found):
    found = json.loads(json.dumps(found))
    found["splits"]["train"]["texts"] = ["<script>alert(1)</script>"]
    page = render_data(found, "runs/x")
    assert "&lt;script&gt;alert(1)" in page
    assert "Documents by their length" in page
    older = render_data(found | {"manifest": {}, "digests": "unknown: old"}, "runs/x")
    assert "unknown: old" in older


def test_the_command_prepares_a_run_and_looks_at_it(tmp_path, write_jsonl, chapters):
    """It runs the data stage of a run from another program; experiments.run then finds it done."""
    config = "--config=experiments/configs/smoke.py"
    steps = "--config.evaluation.num_steps=(4,)"
    corpus = f"--corpus={write_jsonl(chapters)}"
    workdir, page = f"--workdir={tmp_path / 'run'}", tmp_path / "page.html"
    made = call("data", "prepare", config, steps, corpus, workdir, "--workers=1")
    assert "sequences of 32 to train on" in made.stdout
    stored = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    assert stored["config_file"] == "experiments/configs/smoke.py"
    said = ["evaluation.num_steps=(4,)", corpus.replace("--corpus", "data.corpus")]
    assert stored["overrides"] == said
    said = call("data", "inspect", workdir, f"--output={page}").stdout
    assert "digests of the shards: equal" in said
    assert "documents" in said
    assert "<h2" in page.read_text("utf-8")
    record = re.search(r"<blockquote>(.*?)</blockquote>", page.read_text("utf-8"), re.S)[1]
    assert f"train: {html.unescape(record)}\n" in said


def test_two_corpora_are_refused():
    """--corpus used to win in silence. Oracle: the rule, by hand."""
    assert with_corpus(Source("a.py"), "x").overrides == ("data.corpus=x",)
    both = Source("a.py", ("seed=1", "data.corpus=x"))
    assert with_corpus(both, "x") == both
    with pytest.raises(ConfigError, match=r"--corpus=y and --config\.data\.corpus=x name two"):
        with_corpus(both, "y")
