"""Clozes as ids and rows. Oracles: the tokenizer on the whole text, rows written out."""

import numpy as np
import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.continuations import (
    Cloze,
    Continuation,
    RowLayout,
    contexts_cut,
    encode,
    lay_out,
)
from tests.spaces import KINDS, spacing


@pytest.fixture(scope="module")
def gpt2():
    return train_tokenizer(TokenizerConfig(kind="gpt2"), [])


def test_prefix_and_suffix_are_the_whole_text(gpt2):
    clozes = [Cloze("He opened the", " door"), Cloze("", "door"), Cloze("He said: ", "“no”")]
    for cloze, (prefix, suffix) in zip(clozes, encode(gpt2, clozes), strict=True):
        assert gpt2.decode([*prefix, *suffix]) == cloze.prefix + cloze.suffix
        assert prefix.dtype == suffix.dtype == np.int32


@pytest.mark.parametrize(
    "cloze",
    [Cloze("1984", " was"), Cloze("in the", " жж"), Cloze("[ 3 ]", " was"), Cloze("in the", " 7")],
)
def test_a_context_or_an_ending_of_which_nothing_is_left_is_refused(cloze):
    """Otherwise only what is left of the pair would be scored."""
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char"), ["in the was"], "text8")
    with pytest.raises(ConfigError, match=r"holds nothing that the vocabulary|has no tokens"):
        encode(tokenizer, [cloze])
    assert (
        len(encode(tokenizer, [Cloze("", "was"), Cloze(" ", "was"), Cloze("It's ", "7 was")])) == 3
    )


def test_a_space_at_the_end_of_the_prefix_belongs_to_the_next_word(gpt2):
    [apart] = encode(gpt2, [Cloze("He opened the ", "door")])
    [usual] = encode(gpt2, [Cloze("He opened the", " door")])
    np.testing.assert_array_equal(apart.prefix, usual.prefix)
    np.testing.assert_array_equal(apart.suffix, usual.suffix)
    assert len(apart.suffix) == 1, "the word's usual token, space included"


@pytest.mark.parametrize(
    ("cloze", "read"),
    [
        (Cloze("\ufeffIn the\r\n", "beginning\rwas"), Cloze("In the\n", "beginning\nwas")),
        (Cloze("In the\r", "\nbeginning"), Cloze("In the\n", "beginning")),
        (Cloze("", "\ufeffbeginning"), Cloze("", "beginning")),
    ],
)
def test_a_text_given_by_a_caller_is_read_as_one_in_a_file(gpt2, cloze, read):
    """In files line ends are made one and byte-order marks removed, so no model of ours has seen them."""
    for found, expected in zip(*encode(gpt2, [cloze, read]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_where_the_cut_goes_through_a_token_both_sides_are_encoded_alone(gpt2):
    """ "un" and "believable" have other tokens than the whole word."""
    [found] = encode(gpt2, [Cloze("It is un", "believable")])
    np.testing.assert_array_equal(found.prefix, gpt2.encode("It is un"))
    np.testing.assert_array_equal(found.suffix, gpt2.encode("believable"))


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_cut_goes_through_a_token_no_space_comes_in(kind):
    """Tokenizers put one before each text, and so before the text behind a mark, as it was trained."""
    tokenizer = spacing(kind)
    for cloze in (
        Cloze("the th", "ing in"),
        Cloze("a d", "in"),
        Cloze("", "the"),
        Cloze("a", " tin"),
    ):
        [(prefix, suffix)] = encode(tokenizer, [cloze])
        assert tokenizer.decode([*prefix, *suffix]) == cloze.prefix + cloze.suffix
    [found] = encode(tokenizer, [Cloze("the th", "ing in")], mark=1)
    np.testing.assert_array_equal(found.suffix, tokenizer.encode("ing in"))


def test_a_suffix_without_tokens_is_refused(gpt2):
    with pytest.raises(ConfigError, match="the suffix '' has no tokens"):
        encode(gpt2, [Cloze("a text", "")])


@pytest.mark.parametrize(
    ("layout", "cut"),
    [
        (RowLayout(max_length=4), 1),
        (RowLayout(bos_id=9, max_length=4), 2),
        (RowLayout(bos_id=9, mark_id=9, eos_id=8, max_length=4), 3),
        (RowLayout(bos_id=9), 0),
    ],
)
def test_contexts_that_lose_their_beginning_are_counted(layout, cut):
    """Prefixes of one, three and four tokens before a suffix of one, in rows of four tokens."""
    items = [Continuation(np.arange(n), np.array([5])) for n in (1, 3, 4)]
    assert contexts_cut(items, layout) == cut
    rows = np.concatenate([rows.tokens.ravel() for rows in lay_out(items, layout, 40)])
    assert (np.isin(rows, range(4)).sum() < 1 + 3 + 4) == (cut > 0)


def test_rows_of_one_length_stand_together():
    items = [
        Continuation(np.array([5, 6], np.int32), np.array([7], np.int32)),
        Continuation(np.array([5], np.int32), np.array([7, 8], np.int32)),
        Continuation(np.array([], np.int32), np.array([7], np.int32)),
    ]
    short, long = lay_out(items, RowLayout(bos_id=1, eos_id=2), fill=9)
    assert short.tokens.tolist() == [[1, 7, 2]]
    assert long.tokens.tolist() == [[1, 5, 6, 7, 2], [1, 5, 7, 8, 2]]
    assert long.start.tolist() == [3, 2]
    assert long.stop.tolist() == [4, 4]
    assert (short.item.tolist(), long.item.tolist()) == ([2], [0, 1])
    assert len({*short.digest.tolist(), *long.digest.tolist()}) == 3
    [filled] = lay_out(items, RowLayout(bos_id=1, eos_id=2, multiple=4), fill=9)[:1]
    assert filled.tokens.tolist() == [[1, 7, 2, 9]]
