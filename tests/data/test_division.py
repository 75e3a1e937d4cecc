"""What is held out and what is left out. Oracle: sets and sorted lists in plain Python."""

import dataclasses
import hashlib
import itertools
import json
import types

import numpy as np
import pytest

from sdtt_jax.data import DataConfig, TokenizerConfig, division, prepare
from sdtt_jax.data.corpora import CORPORA, Corpus
from sdtt_jax.data.division import (
    DOCUMENT,
    DROPPED,
    Rule,
    choices,
    digest,
    make_rule,
    pieces,
)
from sdtt_jax.data.ingest import ingest, start_reading
from sdtt_jax.data.making import train_tokenizer
from sdtt_jax.data.reading import Part, Piece
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.errors import ConfigError, DataError

UNDIVIDED = Corpus("web", lambda: iter(()))  # by its publisher


def indices_of(parts):
    """A pass over the indices of parts of texts."""
    tables = [
        np.array([(digest(text), row, len(text), 0, 0) for row, text in enumerate(part)], DOCUMENT)
        for part in parts
    ]
    return lambda: iter(tables)


@pytest.fixture
def parts():
    """Three hundred texts in parts of seven, every third of them twice."""
    texts = [f"text {index // 2 if index % 3 == 0 else index}" for index in range(300)]
    return [texts[start : start + 7] for start in range(0, 300, 7)]


@pytest.mark.parametrize("at_once", [2**23, 10])
def test_the_smallest_digests_are_held_out_and_copies_left_out(parts, monkeypatch, at_once):
    """No matter how few digests are compared at a time."""
    monkeypatch.setattr(division, "DIGESTS_AT_ONCE", at_once)
    texts = list(itertools.chain.from_iterable(parts))
    by_digest = sorted(
        set(texts), key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest()
    )
    held_out = set(by_digest[: round(0.1 * len(by_digest))])
    rows, indices = [len(part) for part in parts], indices_of(parts)
    rule = make_rule(UNDIVIDED, 0.1, Rule("own"), rows, indices)
    assert rule.kind == "digests"
    sides = np.concatenate(list(choices(rule, False, rows, indices)))
    assert sides.tolist() == [int(text in held_out) for text in texts]
    sides = np.concatenate(list(choices(rule, True, rows, indices)))
    train = [text for text, side in zip(texts, sides, strict=True) if side == 0]
    assert train == list(dict.fromkeys(text for text in texts if text not in held_out))
    assert (sides == 1).sum() == sum(text in held_out for text in texts)
    assert set(sides) == {0, 1, DROPPED}


def test_a_copy_of_a_held_out_text_leaves_the_train_split():
    """Of a corpus that holds out its last rows, the earlier copy goes."""
    parts = [["a", "b"], ["c", "a"]]
    sides = choices(Rule("rows", 3), True, [2, 2], indices_of(parts))
    assert [side.tolist() for side in sides] == [[DROPPED, 0], [0, 1]]


@pytest.mark.parametrize(("total", "held_out"), [(1_000, 100), (999, 50)])
def test_the_last_rows_are_held_out_as_the_field_does(parts, total, held_out):
    """As many rows as the field holds out, or the config's fraction if only a few of the corpus's files are
    there. Empty and bad rows count too."""
    corpus = dataclasses.replace(UNDIVIDED, held_out_rows=100)
    rule = make_rule(corpus, 0.05, Rule("own"), [total - 10, 10], indices_of(parts))
    assert rule == Rule("rows", total - held_out)
    assert CORPORA["openwebtext"].held_out_rows == 100_000


@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c"]])
def test_a_text_that_has_changed_since_its_index_was_made_is_named(texts):
    """With other texts in its place the split would be another, or Python's `zip` fail without a name."""
    how = types.SimpleNamespace(rows=lambda part: texts)  # noqa: ARG005
    part = Part("train", (Piece(".jsonl", "x.jsonl", 0, -1, 0),))
    with pytest.raises(DataError, match=r"x\.jsonl: the text has changed while it was prepared"):
        list(pieces(how, Rule("own"), [part], [np.zeros(2, np.uint8)], "train"))


def test_pairs_that_are_all_alike_are_counted_once(tmp_path):
    """A pair cannot be cut. The error used to be that a document has no prompt."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f'{{"a": "ask {i % 19}", "b": "answer"}}\n' for i in range(500)))
    config = DataConfig(str(path), sequences="prompted", text_field="a>b")
    with pytest.raises(DataError, match=r"has only 19 different pairs; .* needs 20 or more"):
        start_reading(config, tmp_path / "work")
    with path.open("a") as file:
        file.write('{"a": "ask once more", "b": "answer"}\n')
    assert start_reading(config, tmp_path / "work").rule.kind == "own"


@pytest.mark.parametrize("learned", [True, False])
def test_pairs_that_are_skipped_do_not_move_held_out_ones_into_the_train_split(tmp_path, learned):
    """A learned vocabulary has seen the train split alone. Oracle: the rule by which it was divided before a
    pair was known to be too long."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"a": f"ask {i}", "b": "answer" + " very long" * (20 * (i % 2))} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"sequences": "prompted", "text_field": "a>b", "length": 16, "skip_bad": 100}
    config = DataConfig(str(path), validation_fraction=0.5, **fields)
    read, folder = start_reading(config, tmp_path / "work"), tmp_path / "tokenizer"
    folder.mkdir()
    save_tokenizer(train_tokenizer(TokenizerConfig(kind="gpt2"), []), folder)
    if learned:
        ingest(read, None)
    found = ingest(read, (folder, np.dtype("uint16")))
    texts = [f"{row['a']}\x1e{row['b']}" for row in rows]
    short, known = texts[::2], texts[:: 1 if learned else 2]
    held_out = sorted(map(digest, known))[: len(known) // 2]
    [index], [sides] = found.indices(), found.sides()
    assert index["digest"].tolist() == list(map(digest, short))
    assert sides.tolist() == [int(digest(text) in held_out) for text in short]


@pytest.mark.parametrize("left", [0, 1])
def test_pairs_of_which_hardly_one_is_left_are_too_little_text(tmp_path, left):
    """Each but `left` of them is skipped because it is too long. It was an IndexError."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"a": "ask", "b": f"number {i}" * (i >= left)} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"sequences": "prompted", "text_field": "a>b", "length": 4, "skip_bad": 30}
    config, places = DataConfig(str(path), **fields), (tmp_path / "data", tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=r"the train split of .* has no text but what is blank"):
        prepare(config, TokenizerConfig(kind="gpt2"), *places)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in the beginning was the word", "was the word"),
        ("一" * 500 + "\n" + "中" * 9000 + " " + "文" * 10, "中" * 4745 + " " + "文" * 10),
        ("一" * 5030 + "\n" + "中" * 4970, "中" * 4970),
        ("一" * 10_000 + " ", "一" * 5000 + " "),
    ],
)
def test_half_of_a_text_is_held_out_from_a_space_that_is_near(text, expected):
    """Without spaces between words the next one may be at the end: next to nothing used to be held out."""
    [(_, before), (split, tail)] = Rule("tails", fraction=0.5).cut(text, "train")
    assert (split, tail) == ("validation", expected)
    assert text.startswith(before)
    assert len(before) + len(tail) in (len(text), len(text) - 1)
