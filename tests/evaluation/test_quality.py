"""The quality of texts. Oracles: NLTK, definitions written out, normal theory for the bootstrap."""

import itertools
import math

import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.bootstrap import bootstrap, exp_ratio, mean
from sdtt_jax.evaluation.judge import Scores, in_judge_tokens
from sdtt_jax.evaluation.quality import (
    distinct_n,
    paired_log_ratio,
    perplexity,
    quality,
    repeated_ngram_rate,
    self_bleu,
    unigram_entropy,
)

SENTENCES = (
    "in the beginning god created the heavens and the earth",
    "and god said let there be light and there was light",
    "the earth was without form and the earth was empty",
    "light",
    "and there was evening and there was morning the first day",
)
WORDS = [sentence.split() for sentence in SENTENCES]


def _random_texts(seed, num_texts=30, vocab=12, shortest=1, longest=60):
    """Ids of a small vocabulary, some of them much more frequent, in texts of all lengths."""
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
    assert self_bleu(texts, max_n).tolist() == expected
    assert self_bleu(texts, max_n).mean() == np.mean(expected)


def test_self_bleu_with_another_epsilon(nltk_self_bleu):
    expected = nltk_self_bleu(WORDS, 4, epsilon=0.01)
    assert self_bleu(WORDS, 4, epsilon=0.01).tolist() == expected


def test_an_n_gram_counts_as_often_as_in_one_reference():
    """By hand: of "a a a", 2 of 3 words are in "a a b" or "b b b"; of "b b b" 1 of 3, of "a a b" all."""
    scores = self_bleu(["aaa", "bbb", "aab"], max_n=1)
    np.testing.assert_allclose(scores, [2 / 3, 1 / 3, 1], rtol=1e-12)


def test_equal_texts_have_self_bleu_one_and_strangers_none():
    assert self_bleu([[1, 2, 3, 4, 5]] * 4).mean() == 1
    assert self_bleu(np.arange(40).reshape(4, 10)).mean() == 0


def test_words_that_differ_in_their_end_are_two():
    """By hand: of "a\\0 b" and "a b", one of two words and no pair is shared; NumPy drops a last NUL."""
    expected = math.sqrt(1 / 2 * 0.1 / 1)
    assert self_bleu([["a\0", "b"], ["a", "b"]], 2).tolist() == pytest.approx([expected] * 2)


def test_an_array_and_the_same_lists_are_one():
    tokens = np.random.default_rng(2).integers(0, 5, (7, 20), np.int32)
    rows = [row.tolist() for row in tokens]
    assert self_bleu(tokens).mean() == self_bleu(rows).mean() == self_bleu(list(tokens)).mean()
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
        (lambda: self_bleu(WORDS, 2.5), "max_n must be a whole number, not 2.5"),
        (lambda: distinct_n(WORDS, 0), "n must be positive"),
        (lambda: distinct_n(WORDS, 2.5), "n must be a whole number, not 2.5"),
        (lambda: repeated_ngram_rate(np.zeros((2, 3), np.int32), 2.5), "n must be a whole number"),
        (lambda: repeated_ngram_rate(np.zeros((2, 3), np.int32), 0), "n must be positive, not 0"),
        (lambda: distinct_n([[1, 2], [3]], 3), "no text has the 3 tokens"),
        (lambda: repeated_ngram_rate(np.zeros((2, 3), np.int32)), "length of 3, not 4"),
    ],
)
def test_what_cannot_be_counted_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_unigram_entropy():
    tokens = np.array([[7, 7, 7, 7], [1, 2, 1, 2], [1, 2, 3, 4], [5, 5, 5, 6]])
    expected = [0, np.log(2), np.log(4), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))]
    np.testing.assert_allclose(unigram_entropy(tokens), expected, atol=1e-12)


def test_perplexity_and_its_interval():
    """The bootstrap of a mean of 400 normal values against normal theory: within 10 % of its width."""
    nll = np.random.default_rng(0).normal(3.0, 0.5, 400)
    interval = bootstrap(exp_ratio, nll * 7, np.full(400, 7), seed=1)
    assert interval.value == pytest.approx(np.exp(nll.mean()))
    half = 1.96 * nll.std(ddof=1) / 20
    assert np.log(interval.low) == pytest.approx(nll.mean() - half, abs=0.1 * half)
    assert np.log(interval.high) == pytest.approx(nll.mean() + half, abs=0.1 * half)
    assert bootstrap(exp_ratio, nll * 7, np.full(400, 7), seed=1) == interval


def test_pairing_takes_out_what_texts_have_in_common():
    rng = np.random.default_rng(2)
    common, own = rng.normal(3, 1, 500), rng.normal(-0.1, 0.05, 500)
    ratio = paired_log_ratio(common + own, common, seed=0)
    assert ratio.low < ratio.value < ratio.high < 0
    assert ratio.value == pytest.approx(own.mean())
    assert ratio.high - ratio.low < 0.02, "unpaired it would be 0.25 wide"


def test_a_prompt_counts_in_no_figure():
    """Prompts are left out of every figure; long and short texts weigh by their tokens."""
    texts = [np.array([9, 8, 1, 2, 3, 4]), np.array([7, 7, 1, 1])]
    scores = Scores(np.array([4.0, 4.0]), np.array([4, 2]), np.array([1, 3]))
    result = quality(in_judge_tokens(None, texts, None, "keep", 2).written, scores, seed=0)
    assert result["gen_ppl"] == pytest.approx(np.exp(8 / 6))
    assert result["gen_ppl_median"] == pytest.approx(np.exp(1.5))
    assert result["entropy"] == pytest.approx(np.log(4) / 2)
    assert result["distinct_1"] == pytest.approx(4 / 6)
    assert result["self_bleu"] == self_bleu([[1, 2, 3, 4], [1, 1]]).mean()
    assert result["repeated_4gram_rate"] == 0
    assert "self_bleu" not in quality(texts[:1], None, seed=0)
    assert (result["scored_tokens"], result["texts_in_several_windows"]) == (6, 1)
    assert "gen_ppl" not in quality(texts, None, seed=0)


def test_continuations_of_one_prompt_are_resampled_together():
    """Oracle: continuations that are all alike say no more than one of them; empty ones say nothing."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 5, 6) for _ in range(20)]
    scored = np.array([0, *range(1, 20)])
    nll = scored * rng.normal(2, 0.3, 20)
    alone = quality(texts, Scores(nll, scored, np.ones(20)), seed=0)
    scores = Scores(*(np.repeat(column, 3) for column in (nll, scored, np.ones(20))))
    texts = [text for text in texts for _ in range(3)]
    together = quality(texts, scores, seed=0, continuations=3)
    figures = ("gen_ppl", "gen_ppl_median", "entropy")
    for name in (f"{figure}{end}" for figure in figures for end in ("", "_low", "_high")):
        assert together[name] == pytest.approx(alone[name])
    apart = quality(texts, scores, seed=0)
    assert apart["gen_ppl_high"] - apart["gen_ppl_low"] < 0.7 * (
        together["gen_ppl_high"] - together["gen_ppl_low"]
    )
    scores.scored[:4], scores.nll[:4] = 0, 0  # one of the second prompt
    assert quality(texts, scores, seed=0, continuations=3)["gen_ppl_median_high"] > 0


def test_the_log_ratio_is_that_of_the_perplexities_however_long_the_texts_are():
    """Oracle: the two perplexities; where lengths are equal, the bits are those of the mean difference."""
    rng = np.random.default_rng(0)
    (ours, theirs), counts = rng.random((2, 50)), rng.integers(1, 30, (2, 50))
    scores = [
        Scores(nll * n, n, np.ones_like(n)) for nll, n in zip((ours, theirs), counts, strict=True)
    ]
    expected = np.log(perplexity(scores[0], seed=0).value / perplexity(scores[1], seed=0).value)
    found = paired_log_ratio(ours, theirs, seed=0, scored=tuple(counts))
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    equal = np.full(50, 7)
    same = paired_log_ratio(ours, theirs, seed=0, scored=(equal, equal))
    assert same == paired_log_ratio(ours, theirs, seed=0) == bootstrap(mean, ours - theirs, seed=0)
