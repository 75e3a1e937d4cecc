import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.data import DataConfig, TokenizerConfig, prepare
from sdtt_jax.data.normalize import NORMALIZERS, text8


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
