"""Splits that fill no sequence, and the last id. Oracles: which field would make a split longer; the text."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

from sdtt_jax.data import DataConfig, TokenizerConfig, open_split, prepare
from sdtt_jax.data.tokenizer import HubTokenizer, Special
from sdtt_jax.errors import ConfigError


@pytest.mark.parametrize(("rows", "dtype"), [(2**16, "uint16"), (2**16 + 1, "int32")])
def test_the_last_id_of_a_vocabulary_is_stored_whole(rows, dtype, write_jsonl, tmp_path):
    """In 16 bits, id 65536 would be 0."""
    vocab = {"</s>": 0} | {f"w{i}": i for i in range(1, rows)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w1"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    config = TokenizerConfig(kind="hub")
    tokenizer = HubTokenizer(config, "none", words.to_str().encode(), Special(rows, 0, 0))
    corpus = write_jsonl([f"w{i} w{rows - 1}" for i in range(1, 41)])
    folders = tmp_path / "data", tmp_path / "tokenizer"
    prepare(DataConfig(str(corpus), length=3), config, *folders, tokenizer=tokenizer)
    assert json.loads((folders[0] / "info.json").read_text())["dtype"] == dtype
    split = open_split(folders[0], "train")
    stored = split.gather(np.arange(len(split)))
    assert (stored[:, 1:] == [rows - 1, 0]).all()


def test_a_length_beyond_the_corpus_names_the_split(prepared, tmp_path):
    config = dataclasses.replace(prepared.data_config, length=90_000)
    message = (
        r"^data\.length 90000 is longer than the whole valid.* larger data\.validation_fraction\.$"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(config, prepared.tokenizer_config, tmp_path / "data", tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            "a b c d e f g h i",
            "a b",
            r"^data\.length 9 is .* validation split of 3 .* a shorter one\.$",
        ),
        (
            "a b c d e f g h i",
            " ",
            r"^data\.corpus: the validation split of wikitext2 has no text but",
        ),
        ("", "a b c d e f g h i", r"^data\.corpus: the train split of wikitext2 has no text but"),
    ],
)
def test_a_split_of_a_corpus_s_own_is_no_fraction(
    tmp_path, monkeypatch, train, validation, message
):
    """A larger data.validation_fraction was asked for, or a length shorter than 0 tokens."""
    (tmp_path / "wikitext2").mkdir()
    for split, text in (("train", train), ("validation", validation)):
        line = json.dumps({"text": text}) + "\n"
        (tmp_path / "wikitext2" / f"{split}.jsonl").write_text(line)
    monkeypatch.setenv("SDTT_JAX_CORPORA", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        prepare(
            DataConfig("wikitext2", length=9),
            TokenizerConfig(kind="gpt2"),
            tmp_path / "data",
            tmp_path / "tokenizer",
        )
