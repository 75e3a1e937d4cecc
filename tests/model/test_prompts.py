"""Prompts, gaps and ends. Oracle: the text written out token by token."""

import re

import numpy as np
import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.data.tokenizer import MASK_PIECE
from sdtt_jax.errors import ConfigError
from sdtt_jax.model.prompts import (
    cut_at_eos,
    given_batch,
    given_tokens,
    reading_notes,
    text_lengths,
    with_length,
)
from tests.spaces import KINDS, spacing


class Letters:
    """A tokenizer whose ids are places in the alphabet."""

    def encode_part(self, text, *, behind=False):
        del behind
        return np.array([ord(letter) - ord("a") for letter in text], np.int32)


def written(tokens, fixed):
    assert tokens.dtype == np.int32
    assert fixed.dtype == bool
    return "".join(
        chr(token + ord("a")) if given else "." for token, given in zip(tokens, fixed, strict=True)
    )


@pytest.mark.parametrize(
    ("prompt", "infill", "expected"),
    [
        (None, None, "........"),
        ("abc", None, "abc....."),
        ("abcdefg", None, "abcdefg."),
        (None, "ab[3]c", "ab...c.."),
        (None, "[2]ab[1]c[2]", "..ab.c.."),
        (None, "[8]", "........"),
        (None, "ab[0]c", "abc....."),
        (None, "ab", "ab......"),
    ],
)
def test_given_tokens(prompt, infill, expected):
    assert written(*given_tokens(Letters(), 8, prompt, infill)) == expected


def test_behind_a_prompt_of_instructions_stands_a_mark_and_behind_the_answer_the_end():
    """`num_tokens` positions after the mark are free; the first EOS ends the text, the others are padding."""
    given = given_batch(Letters(), 8, 2, ["ab", "c"], mark=25)
    assert [written(*row) for row in zip(*given, strict=True)] == ["abz.....", "cz......"]
    # An infill is the answer to an empty prompt, unless it says where its prompt ends; so is a prompt.
    texts = {"prompt": ["ab", None, None, "azb"], "infill": [None, "[2]a", "a[1]z[2]b", None]}
    mixed = given_batch(Letters(), 8, 4, **texts, mark=25)
    shown = ["abz.....", "z..a....", "a.z..b..", "azb....."]
    assert [written(*row) for row in zip(*mixed, strict=True)] == shown
    rows = zip(*with_length(*given, 3, eos_id=4), strict=True)
    assert [written(*row) for row in rows] == ["abz...ee", "cz...eee"]
    empty = np.zeros((1, 4), np.int32), np.zeros((1, 4), bool)
    assert written(*(x[0] for x in with_length(*empty, 3, eos_id=4))) == "...e"
    # As many as there is room for after the longest, and no more.
    rows = zip(*with_length(*given, 5, eos_id=4), strict=True)
    assert [written(*row) for row in rows] == ["abz.....", "cz.....e"]
    with pytest.raises(ConfigError, match=r"num_tokens=6, but only 5 of the 8 .* take at most 5"):
        with_length(*given, 6, eos_id=4)
    with pytest.raises(ConfigError, match=r"num_tokens=1, but only 0 .* leave num_tokens out"):
        with_length(*given_batch(Letters(), 4, 1, None, "[2]ab"), 1, eos_id=4)


@pytest.mark.parametrize(
    ("prompt", "infill", "message"),
    [
        ("abcdefghi", None, "The prompt has 9 tokens, but the model's sequences only 8"),
        (
            "abcdefgh",
            None,
            "8 tokens, as many as the model's sequences, which leaves nothing to write",
        ),
        (None, "ab[0]cdefgh", "The infill has 8 tokens, as many as the model's sequences"),
        (None, "abc[6]", "The infill has 9 tokens, but the model's sequences only 8"),
        (None, "[8]a", "The infill has 9 tokens"),
        (None, "a[999999999999]b", "The infill has 1000000000001 tokens"),
        (None, f"a[{'9' * 5000}]b", "The infill has 1000"),
        ("a", "b", "a prompt or an infill, not both"),
    ],
)
def test_what_cannot_be_written(prompt, infill, message):
    with pytest.raises(ConfigError, match=message):
        given_tokens(Letters(), 8, prompt, infill)


def test_a_text_is_shown_as_it_is_read():
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char"), ["in the beginning"], "text8")
    prompts = ["In the  beginning", "in the", "In the  beginning"]
    infills = ["in [3] the", "In [3] the [ 3 ] ended[07]", "in [ 3 ] the"]
    assert list(reading_notes(tokenizer, prompts, infills)) == [
        "The prompt 'In the  beginning' is read as 'in the beginning'.",
        "The infill 'In [3] the [ 3 ] ended[07]' is read as 'in [3] the en⁇e⁇[07]'.",
        "The infill 'in [ 3 ] the' has no gap; [12] leaves 12 tokens to the model.",
        "The infill 'in [ 3 ] the' is read as 'in the'.",
    ]
    *_, note = reading_notes(tokenizer, ["in [5] the"], [])
    assert note.startswith(
        "The prompt 'in [5] the' has no gaps: [12] leaves tokens to the model in --infill"
    )
    for slip in ("[-1]", "[7 ]", "[ 7]", "[1.5]", "[7, 8]"):
        with pytest.raises(ConfigError, match=re.escape(f"infill: {slip!r} is no gap")):
            given_tokens(tokenizer, 16, infill=f"in [2] {slip} the")
    with pytest.raises(ConfigError, match="' 77 ' holds nothing"):
        given_tokens(tokenizer, 16, infill="in [2] 77 [2] the")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "infill", ["the th[1]g in[0] the tin", "[0]the[0][0]tin[2]", "[2] the tin", "the [1]in", "t[1]"]
)
def test_around_a_gap_no_space_comes_or_goes(kind, infill):
    """Also of tokenizers that put one before each text. Oracle: what was typed."""
    tokenizer = spacing(kind)
    tokens, fixed = given_tokens(tokenizer, 24, infill=infill)
    row = np.where(fixed, tokens, tokenizer.mask_id)
    read = re.sub(r"\[(\d+)\]", lambda gap: MASK_PIECE * int(gap[1]), infill)
    assert tokenizer.decode(row).rstrip(MASK_PIECE) == read.rstrip(MASK_PIECE)
    assert not list(reading_notes(tokenizer, [], [infill]))
    if infill.startswith("[0]"):
        np.testing.assert_array_equal(row[:1], tokenizer.encode("the"))


def test_what_a_caller_gives_is_read_as_from_a_file():
    """Line ends are made one and a byte-order mark is removed; no note says so, since nobody types them."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    for typed in ({"prompt": "\ufeffIn the\r\nb\re"}, {"infill": "\ufeffIn\r\n[2]b\re"}):
        [(name, text)] = typed.items()
        read = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        found, expected = (given_tokens(tokenizer, 16, **{name: each}) for each in (text, read))
        np.testing.assert_array_equal(found, expected)
        assert not list(
            reading_notes(tokenizer, **{"prompts": [], "infills": [], f"{name}s": [text]})
        )


def rows(num_samples, prompt=None, infill=None):
    given = given_batch(Letters(), 4, num_samples, prompt, infill)
    return [written(*pair) for pair in zip(*given, strict=True)]


def test_a_batch_has_one_text_for_all_or_one_for_each():
    assert rows(2) == ["....", "...."]
    assert rows(2, "ab") == ["ab..", "ab.."]
    assert rows(3, ["ab", "", "cde"]) == ["ab..", "....", "cde."]
    assert rows(2, infill=["[1]a", "b[2]c"]) == [".a..", "b..c"]
    with pytest.raises(ConfigError, match="There are 3 texts in prompt for num_samples=2"):
        rows(2, ["a", "b", "c"])


BOS, EOS = 8, 9


@pytest.mark.parametrize(
    ("tokens", "given", "expected"),
    [
        ([1, 9, 2, 3], 0, [1, 9, 9, 9]),
        ([8, 1, 2, 3], 0, [8, 1, 2, 3]),
        # An EOS before any text ends nothing: GPT-2 has one token for BOS and EOS.
        ([9, 1, 9, 3], 0, [9, 1, 9, 9]),
        # What was given is kept, and so is an EOS before it.
        ([1, 9, 2, 3], 3, [1, 9, 2, 3]),
        ([1, 9, 2, 9, 4], 3, [1, 9, 2, 9, 9]),
        ([1, 9, 9, 4], 0, [1, 9, 9, 9]),
    ],
)
def test_texts_stop_at_their_first_end(tokens, given, expected):
    fixed = np.arange(len(tokens)) < given
    found = cut_at_eos(np.array([tokens], np.int32), fixed[None], BOS, EOS)
    assert found.tolist() == [expected]
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    ("written", "expected"),
    [([5, 6, 7], [1, 2, 5, 6, 7, EOS]), ([5, EOS, 7], [1, 2, 5, EOS]), ([EOS, 6, 7], [1, 2, EOS])],
)
def test_a_text_of_a_fixed_length_may_end_before(written, expected):
    """The EOS that `with_length` adds used to count as given, so everything before it was kept."""
    given = np.array([[1, 2, 0, 0, 0, 0, 0]], np.int32), np.arange(7)[None] < 2
    tokens, fixed = with_length(*given, 3, EOS)
    tokens[0, 2:5] = written
    padded = expected + [EOS] * (7 - len(expected))
    assert text_lengths(tokens, fixed, BOS, EOS).tolist() == [len(expected)]
    assert cut_at_eos(tokens, fixed, BOS, EOS).tolist() == [padded]


def test_a_text_is_as_long_as_up_to_its_end():
    """In GPT-2, BOS and EOS are one token, here 9; a text may begin with it."""
    for text, expected in (
        ([9, 1, 2, 9, 3], 4),
        ([1, 9, 9, 9], 2),
        ([9, 9, 1], 3),
        ([], 0),
    ):
        tokens = np.array([text], np.int32)
        assert text_lengths(tokens, np.zeros(tokens.shape, bool), 9, 9).tolist() == [expected]
