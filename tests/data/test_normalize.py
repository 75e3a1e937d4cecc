"""Normalised texts. Oracles: examples written out; the alphabet; a second time changes nothing."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.data import DataConfig, TokenizerConfig, prepare
from sdtt_jax.data.normalize import (
    NORMALIZERS,
    require_characters,
    text8,
    without_traces_of_files,
)
from sdtt_jax.errors import ConfigError, DataError


def test_text8_keeps_letters_and_single_spaces():
    assert text8("  God's 7 days,\n\nGENESIS—1:1. ") == "god s days genesis"


@settings(deadline=None)
@given(st.text())
def test_text8_has_27_characters_at_most_and_no_double_space(text):
    result = text8(text)
    assert set(result) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert "  " not in result
    assert result == result.strip()


@settings(deadline=None)
@given(st.text())
def test_every_normalisation_is_idempotent(text):
    for normalize in NORMALIZERS.values():
        assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(("normalize", "lost"), [("text8", 30 * 4), ("none", 0)])
def test_letters_of_other_alphabets_that_are_dropped_are_counted(
    write_jsonl, tmp_path, normalize, lost
):
    """Russian beside English went without a word. Oracle: the letters of the rows, counted by hand."""
    rows = [f"{'word ' * (1 + i)} Где Café, 1 × 2?" for i in range(30)]
    config = DataConfig(str(write_jsonl(rows)), normalize=normalize, length=8)
    chars = TokenizerConfig(model_type="char", vocab_size=60)
    info = prepare(config, chars, tmp_path / "data", tmp_path / "tokenizer")
    assert info.num_unknown == lost


def test_what_only_files_have_is_taken_out():
    assert without_traces_of_files("\ufeffa\r\nb\rc\n\r\nd\ufeff") == "a\nb\nc\n\nd\ufeff"
    with pytest.raises(ConfigError, match="must be a str, not b'a'"):
        without_traces_of_files(b"a")


def test_half_of_a_character_is_shown_with_its_neighbours():
    require_characters("a \U0001f600")
    near = "b" * 20 + "\ud83d" + "c" * 20
    for text, said in ((f"a{near}d", near), (near[18:], near[18:])):
        with pytest.raises(DataError, match=f"^{re.escape(repr(said))} holds half of"):
            require_characters(text)
