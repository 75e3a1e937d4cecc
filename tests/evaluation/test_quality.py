"""Repetition within and between texts. Oracles: NLTK, and the definitions written out."""

import itertools

import numpy as np
import pytest
from sdtt_jax.evaluation.diversity import (
    distinct_n,
    repeated_ngram_rate,
    self_bleu,
    self_bleu_scores,
)

from sdtt_jax.errors import ConfigError

SENTENCES = (
    "in the beginning god created the heavens and the earth",
    "and god said let there be light and there was light",
    "the earth was without form and the earth was empty",
    "light",
    "and there was evening and there was morning the first day",
)
WORDS = [sentence.split() for sentence in SENTENCES]


def _random_texts(seed, num_texts=30, vocab=12, shortest=1, longest=60):
    """Ids of a small vocabulary, the frequent ones much more often, lengths of all kinds."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest, num_texts)
    return [(rng.zipf(1.5, size) % vocab).tolist() for size in lengths]


@pytest.fixture(scope="module")
def nltk_self_bleu():
    bleu = pytest.importorskip("nltk.translate.bleu_score", reason="needs the extra 'test'")

    def scores(texts, max_n, epsilon=0.1):
        smoothing = bleu.SmoothingFunction(epsilon=epsilon).method1
        weights = (1 / max_n,) * max_n
        return [
            bleu.sentence_bleu(texts[:i] + texts[i + 1 :], text, weights, smoothing)
            for i, text in enumerate(texts)
        ]

    return scores


@pytest.mark.parametrize("max_n", [1, 2, 4, 5])
@pytest.mark.parametrize(
    "texts", [WORDS, _random_texts(0), _random_texts(1, 8, vocab=400, longest=9)]
)
def test_self_bleu_is_nltks_to_the_last_bit(texts, max_n, nltk_self_bleu):
    expected = nltk_self_bleu(texts, max_n)
    assert self_bleu_scores(texts, max_n).tolist() == expected
    assert self_bleu(texts, max_n) == np.mean(expected)


def test_self_bleu_with_another_epsilon(nltk_self_bleu):
    expected = nltk_self_bleu(WORDS, 4, epsilon=0.01)
    assert self_bleu_scores(WORDS, 4, epsilon=0.01).tolist() == expected


def test_an_n_gram_counts_as_often_as_in_one_reference():
    """By hand: "a a a" against "a a b" and "b b b" has 2 of 3 words; "b b b" 1 of 3, "a a b" all."""
    scores = self_bleu_scores(["aaa", "bbb", "aab"], max_n=1)
    np.testing.assert_allclose(scores, [2 / 3, 1 / 3, 1], rtol=1e-12)


def test_equal_texts_have_self_bleu_one_and_strangers_none():
    assert self_bleu([[1, 2, 3, 4, 5]] * 4) == 1
    assert self_bleu(np.arange(40).reshape(4, 10)) == 0


def test_an_array_and_the_same_lists_are_one():
    tokens = np.random.default_rng(2).integers(0, 5, (7, 20), np.int32)
    rows = [row.tolist() for row in tokens]
    assert self_bleu(tokens) == self_bleu(rows) == self_bleu(list(tokens))
    assert distinct_n(tokens, 2) == distinct_n(rows, 2)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_distinct_n_counts_what_nltk_lists(n):
    ngrams = pytest.importorskip("nltk.util", reason="needs the extra 'test'").ngrams
    for texts in (WORDS, _random_texts(3)):
        grams = list(itertools.chain.from_iterable(ngrams(text, n) for text in texts))
        assert distinct_n(texts, n) == len(set(grams)) / len(grams)


def test_n_grams_do_not_cross_from_text_to_text():
    assert distinct_n([[1, 2], [2, 1], [1, 2]], 2) == 2 / 3


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repeated_n_grams_are_those_that_stood_there_before(n):
    tokens = np.random.default_rng(4).integers(0, 3, (20, 30), np.int32)
    by_hand = []
    for row in tokens.tolist():
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        seen = [gram in grams[:i] for i, gram in enumerate(grams)]
        by_hand.append(sum(seen) / len(seen))
    rates = repeated_ngram_rate(tokens, n)
    assert rates.dtype == np.float64
    np.testing.assert_allclose(rates, by_hand, rtol=1e-12, atol=1e-15)


def test_a_single_token_over_and_over_is_all_repetition():
    tokens = np.array([[7] * 12, [*range(12)]], np.int32)
    np.testing.assert_allclose(repeated_ngram_rate(tokens), [8 / 9, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: self_bleu([[1, 2]]), "1 is too few"),
        (lambda: self_bleu(WORDS, 0), "max_n must be positive"),
        (lambda: self_bleu(WORDS, epsilon=0), "epsilon must be positive"),
        (lambda: distinct_n(WORDS, 0), "n must be positive"),
        (lambda: distinct_n([[1, 2], [3]], 3), "no text has the 3 tokens"),
        (lambda: repeated_ngram_rate(np.zeros((2, 3), np.int32)), "length of 3, not 4"),
    ],
)
def test_what_cannot_be_counted_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
