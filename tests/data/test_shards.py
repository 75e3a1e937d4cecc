"""Splits that fill no sequence. Oracle: which field, by the rule of the division, would make them longer."""

import dataclasses
import json

import pytest

from sdtt_jax.data import DataConfig, TokenizerConfig, prepare
from sdtt_jax.errors import ConfigError


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
