from hypothesis import given, settings
from hypothesis import strategies as st

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
