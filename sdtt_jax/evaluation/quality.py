"""The quality of generated texts: perplexity together with entropy, and how much they repeat themselves.

A text is a sequence of ids or words, and texts may differ in length. N-grams are counted once, in NumPy.
What papers print as a percentage is a share in [0, 1] here.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdtt_jax.config import positive, require, whole
from sdtt_jax.evaluation.bootstrap import Interval, bootstrap, exp_ratio, mean, shares
from sdtt_jax.evaluation.judge import Scores

Texts = Sequence[np.ndarray] | Sequence[Sequence[int]] | Sequence[Sequence[str]] | np.ndarray
# Lengths of the n-grams whose variety is reported, and of those whose repetition is.
DISTINCT = (1, 2, 3)
REPEATED = 4


def quality(
    texts: Sequence[np.ndarray],
    scores: Scores | None,
    *,
    seed: int,
    continuations: int = 1,
) -> dict[str, Any]:
    """Perplexity together with entropy, and how much the texts repeat themselves and each other.

    Texts in which the judge could score no token (only EOS, say) do not count for the perplexity;
    `texts_not_scored` is their number. If there are no others, the perplexity is left out.

    Args:
      texts: int32 tokens `[n_i]`, without prompts.
      scores: the judge's; None without a judge.
      seed: of the bootstrap.
      continuations: how many texts in a row continue one prompt. Prompts are then resampled: what continues
        the same one is alike.
    """
    result: dict[str, Any] = {"num_texts": len(texts)}
    if scores is not None:
        scored = scores.scored > 0
        if scored.any():
            result |= perplexity(scores, seed=seed, continuations=continuations).named("gen_ppl")
            result |= _median(scores, seed, continuations).named("gen_ppl_median")
        result["texts_not_scored"] = int((~scored).sum())
        result["scored_tokens"] = int(scores.scored.sum())
        result["texts_in_several_windows"] = int((scores.windows > 1).sum())
    entropies = unigram_entropy(texts).reshape(-1, continuations).mean(axis=1)
    result |= bootstrap(mean, entropies, seed=seed).named("entropy")
    for n in DISTINCT:
        if any(len(text) >= n for text in texts):
            result[f"distinct_{n}"] = distinct_n(texts, n)
    if len(texts) > 1:
        result["self_bleu"] = float(self_bleu(texts).mean())
    long = [text for text in texts if len(text) >= REPEATED]
    if long:
        rates = np.concatenate([repeated_ngram_rate(text[None], REPEATED) for text in long])
        result["repeated_4gram_rate"] = float(rates.mean())
    return result


def perplexity(scores: Scores, *, seed: int, continuations: int = 1) -> Interval:
    """Perplexity over all scored tokens of the texts; there must be at least one.

    `continuations` texts in a row are resampled together.
    """
    nll, scored = (
        column.reshape(-1, continuations).sum(axis=1) for column in (scores.nll, scores.scored)
    )
    kept = scored > 0
    require(bool(kept.any()), "the texts hold nothing to score.")
    return bootstrap(exp_ratio, nll[kept], scored[kept], seed=seed)


def _median(scores: Scores, seed: int, continuations: int) -> Interval:
    """The perplexity of the median text, of those with something to score."""
    nats = np.where(scores.scored > 0, scores.per_token, np.nan).reshape(-1, continuations)
    nats = nats[~np.isnan(nats).all(axis=1)]
    median = np.nanmedian if np.isnan(nats).any() else np.median

    def together(*columns: np.ndarray) -> np.ndarray:
        return np.exp(median(np.concatenate(columns, axis=-1), axis=-1))

    return bootstrap(together, *nats.T, seed=seed)


def unigram_entropy(texts: Iterable[np.ndarray]) -> np.ndarray:
    """Entropy of the tokens within each text: `[texts]` float64, nats.

    Usually reported to detect repetition: a text of one repeated token has 0, as has an empty one.

    Args:
      texts: `[texts, length]`, or arrays of different lengths.
    """
    entropies = []
    for row in texts:
        ordered = np.sort(row)
        edges = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])
        share = np.diff(np.flatnonzero(edges)) / max(len(row), 1)
        entropies.append(-(share * np.log(share)).sum() if len(row) else 0.0)
    return np.array(entropies)


def paired_log_ratio(
    nll: np.ndarray,
    reference: np.ndarray,
    *,
    seed: int,
    scored: tuple[np.ndarray, np.ndarray] | None = None,
) -> Interval:
    """Log ratio of two models' generative perplexities, with texts paired by their keys.

    Args:
      nll, reference: `[texts]`, nats per token, row i of both drawn with the same key.
      seed: of the bootstrap over texts.
      scored: `[texts]` each, how many tokens were scored in the texts of both; None: equally many in all.
    """
    ours, theirs = (np.ones(len(nll)),) * 2 if scored is None else map(shares, scored)
    return bootstrap(_log_ratio, nll * ours, ours, reference * theirs, theirs, seed=seed)


def _log_ratio(
    ours: np.ndarray, share: np.ndarray, theirs: np.ndarray, their_share: np.ndarray
) -> np.ndarray:
    """The difference of two `ratio`s, with the bits of a mean of differences where all shares are 1."""
    per_token = ours / share.mean(axis=-1, keepdims=True)
    return mean(per_token - theirs / their_share.mean(axis=-1, keepdims=True))


class _Grams(NamedTuple):
    """The n-grams of all texts in the order in which they occur."""

    gram: np.ndarray  # `[grams]` int64, equal where the n-grams are equal; 0 … distinct - 1
    text: np.ndarray  # `[grams]` int64, the text that holds the n-gram


def distinct_n(texts: Texts, n: int) -> float:
    """Share of distinct n-grams among the n-grams of all texts together (Li et al., arXiv 1510.03055).

    It falls as the amount of text grows, so compare equal amounts.
    """
    whole(1, n=n)
    *_, (gram, _) = _ngrams(texts, n)
    require(len(gram) > 0, f"no text has the {n} tokens of an n-gram; give longer texts.")
    return int(gram.max() + 1) / len(gram)


def repeated_ngram_rate(tokens: np.ndarray, n: int = 4) -> np.ndarray:
    """Share of each text's n-grams that occurred in it before (seq-rep-n of arXiv 1908.04319).

    `[texts]` float64: 0 if no n-gram occurs twice, near 1 if all are the same.

    Args:
      tokens: `[texts, length]` int32.
      n: tokens of an n-gram.
    """
    length = tokens.shape[1]
    whole(1, n=n)
    require(n <= length, f"n must lie between 1 and the texts' length of {length}, not {n}.")
    *_, (gram, _) = _ngrams(tokens, n)
    ordered = np.sort(gram.reshape(len(tokens), -1), axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    return np.asarray(1 - distinct / ordered.shape[1], np.float64)


def self_bleu(texts: Texts, max_n: int = 4, *, epsilon: float = 0.1) -> np.ndarray:
    """BLEU of each text with all others as its references (Texygen, arXiv 1802.01886): `[texts]` float64.

    1 if all texts are the same. BLEU is the geometric mean of the precisions of 1- to max_n-grams in equal
    parts, each n-gram counted at most as often as in the reference that has it most often, with a brevity
    penalty by the reference of the closest length (the shorter of two). The numbers are those of NLTK's
    `sentence_bleu` with `SmoothingFunction(epsilon).method1`, as the field computes it; but one table of the
    n-grams of all texts, instead of one for every text, makes the time linear in the amount of text.

    Args:
      texts: at least two.
      max_n: the longest n-grams that count.
      epsilon: replacement for a count of 0 matches.
    """
    require(len(texts) > 1, f"self-BLEU compares texts with each other; {len(texts)} is too few.")
    whole(1, max_n=max_n)
    positive(epsilon=epsilon)
    lengths = np.array([len(text) for text in texts])
    matches = np.stack([_clipped_matches(grams, len(texts)) for grams in _ngrams(texts, max_n)])
    closest = _closest_other_lengths(lengths)
    rows = zip(matches.T.tolist(), lengths.tolist(), closest.tolist(), strict=True)
    return np.array([_bleu(*row, epsilon) for row in rows])


def _bleu(matches: list[int], length: int, reference_length: int, epsilon: float) -> float:
    if matches[0] == 0:
        return 0.0
    penalty = 1.0 if length > reference_length else math.exp(1 - reference_length / length)
    logs = [
        math.log((count or epsilon) / max(1, length - n + 1)) for n, count in enumerate(matches, 1)
    ]
    return penalty * math.exp(math.fsum(1 / len(matches) * log for log in logs))


def _closest_other_lengths(lengths: np.ndarray) -> np.ndarray:
    """For each text the closest length among the others, the shorter of two: `[texts]`."""
    order = np.argsort(lengths)
    own = lengths[order]
    shorter, longer = np.append(-np.inf, own[:-1]), np.append(own[1:], np.inf)
    closest = np.empty(len(own))
    closest[order] = np.where(own - shorter <= longer - own, shorter, longer)
    return closest


def _clipped_matches(grams: _Grams, num_texts: int) -> np.ndarray:
    """How many of each text's n-grams its references have too: `[texts]` int64.

    An n-gram counts in a text at most as often as it occurs in whichever other text has it most often: the
    largest count of all texts, or the second largest for the text that has the largest.
    """
    if len(grams.gram) == 0:
        return np.zeros(num_texts, np.int64)
    pairs, counts = np.unique(grams.gram * num_texts + grams.text, return_counts=True)
    gram, text = np.divmod(pairs, num_texts)
    order = np.lexsort((counts, gram))
    gram, text, counts = gram[order], text[order], counts[order]
    last = np.flatnonzero(np.append(gram[1:] != gram[:-1], True))
    largest = counts[last][gram]
    before = np.maximum(last - 1, 0)
    second = np.where((last > 0) & (gram[before] == gram[last]), counts[before], 0)
    limit = largest.copy()
    limit[last] = second
    clipped = np.bincount(text, np.minimum(counts, limit), num_texts)
    return clipped.astype(np.int64)


def _ngrams(texts: Texts, max_n: int) -> Iterator[_Grams]:
    """The 1-grams, 2-grams, … of all texts; an n-gram is numbered as (its first n - 1 tokens, its last)."""
    numbers: dict[Any, int] = {}  # NumPy would give every word the memory of the longest
    every = [numbers.setdefault(token, len(numbers)) for token in itertools.chain(*texts)]
    tokens = np.array(every, np.int64)
    lengths = np.array([len(text) for text in texts], np.int64)
    text = np.repeat(np.arange(len(texts)), lengths)
    size = int(tokens.max(initial=0)) + 1
    start = np.arange(len(tokens))
    gram = tokens
    for n in range(1, max_n + 1):
        if n > 1:
            # An n-gram must end in the text that it begins in.
            inside = start + n - 1 < len(tokens)
            inside[inside] = text[start[inside] + n - 1] == text[start[inside]]
            start, gram = start[inside], gram[inside]
            gram = np.unique(gram * size + tokens[start + n - 1], return_inverse=True)[1]
        yield _Grams(gram, text[start])
