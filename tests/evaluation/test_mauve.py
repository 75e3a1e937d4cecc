"""MAUVE. Oracles: the package `mauve-text` (0.4), golden hidden states of GPT-2, each text on its own."""

import dataclasses

import jax
import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.mauve import (
    MauveConfig,
    area_under,
    divergence_curve,
    mauve_score,
    quantise,
    text_features,
)
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.causal import CausalNetwork
from tests.worlds import as_causal, noisy_params


@pytest.fixture(scope="module")
def package():
    module = pytest.importorskip("mauve.compute_mauve", reason="needs the extra 'test'")
    module.faiss.omp_set_num_threads(
        1
    )  # Its threads wait for each other where tests share the cores.
    return module


def clouds(seed, shift, num=300, features=16):
    """Two sets of texts in several groups; the second set's groups are moved by `shift`."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((6, features))
    moved = centres + shift * rng.standard_normal(centres.shape)
    return [
        which[rng.integers(0, 6, num)] + rng.standard_normal((num, features))
        for which in (centres, moved)
    ]


def histograms(seed, buckets, empty):
    rng = np.random.default_rng(seed)
    p, q = rng.gamma(0.5, size=(2, buckets))
    p[rng.random(buckets) < empty] = 0
    q[rng.random(buckets) < empty] = 0
    return p / p.sum(), q / q.sum()


@pytest.mark.parametrize("scaling", [1.0, 5.0])
@pytest.mark.parametrize(("buckets", "empty"), [(2, 0.0), (12, 0.3), (500, 0.0), (500, 0.5)])
def test_the_curve_of_two_histograms_is_the_packages(package, buckets, empty, scaling):
    p, q = histograms(buckets, buckets, empty)
    weights = np.linspace(1e-6, 1 - 1e-6, 25)
    expected = package.get_divergence_curve_for_multinomials(p, q, weights, scaling)
    np.testing.assert_allclose(
        divergence_curve(p, q, scaling=scaling, points=25), expected, rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, 3.0])
def test_the_score_of_the_packages_clusters_is_the_packages(package, shift):
    """With the same clustering, everything else is equal to twelve digits."""
    p, q = clouds(0, shift)
    theirs = package.compute_mauve(p_features=p, q_features=q, kmeans_num_redo=1, seed=3)
    curve = divergence_curve(theirs.p_hist, theirs.q_hist, scaling=5.0, points=25)
    np.testing.assert_allclose(curve, theirs.divergence_curve, rtol=1e-12, atol=1e-15)
    assert area_under(curve) == pytest.approx(theirs.mauve, rel=1e-12)


@pytest.mark.parametrize(("shift", "least", "most"), [(0.2, 0.8, 1), (0.5, 0.3, 0.7)])
def test_scores_agree_with_the_packages_within_the_noise_of_seeds(package, shift, least, most):
    """Six seeds each on the same 2 x 300 texts: the means differ by less than three standard errors.

    The standard error of the difference is about 0.01 where the score is 0.93 and 0.03 where it is 0.46.
    """
    p, q = clouds(1, shift)
    ours = np.array([mauve_score(p, q, MauveConfig(seed=seed)).value for seed in range(6)])
    theirs = np.array(
        [package.compute_mauve(p_features=p, q_features=q, seed=seed).mauve for seed in range(6)]
    )
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 6)
    assert least < theirs.mean() < most, "a value that says something"
    assert abs(ours.mean() - theirs.mean()) < 3 * error
    assert error < 0.05


def test_equal_sets_score_one_and_distant_ones_nothing():
    p, q = clouds(2, 0.0)
    assert mauve_score(p, p, MauveConfig(seed=0)).value == pytest.approx(1, abs=1e-9)
    assert mauve_score(p, -p - 30, MauveConfig(seed=0)).value < 0.01
    assert 0.9 < mauve_score(p, q, MauveConfig(seed=0)).value < 1


@pytest.mark.parametrize("points", [1, 5, 25])
@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.25, 0.75], [0.4, 0.6, 0.0]])
def test_the_area_of_equal_histograms_is_one(shares, points):
    """The divergences are all 0, so the curve is the corner (1, 1) between its two ends."""
    curve = divergence_curve(np.array(shares), np.array(shares), scaling=5.0, points=points)
    assert area_under(curve) == pytest.approx(1, abs=1e-9)


def test_the_score_does_not_ask_which_set_is_real():
    """One bucket for each of six far groups, so that the clustering cannot differ."""
    rng = np.random.default_rng(3)
    groups = 20 * np.eye(6)
    p = groups[rng.choice(6, 200, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])]
    q = groups[rng.choice(6, 200, p=[0.1, 0.1, 0.1, 0.1, 0.1, 0.5])]
    one, other = (
        mauve_score(a, b, MauveConfig(seed=0, num_buckets=6)) for a, b in ((p, q), (q, p))
    )
    assert one.value == pytest.approx(other.value, rel=1e-9)
    assert 0 < one.value < 1
    np.testing.assert_allclose(np.sort(one.p), np.sort(other.q))


def test_equal_seeds_give_equal_scores_and_buckets_are_a_tenth():
    p, q = clouds(4, 0.5, num=200)
    first, again = (mauve_score(p, q[:150], MauveConfig(seed=7)) for _ in range(2))
    assert first.value == again.value
    assert len(first.p) == len(first.q) <= 15
    assert first.p.sum() == pytest.approx(1)
    assert len(mauve_score(p, q, MauveConfig(seed=0, num_buckets=3)).p) == 3


def test_buckets_are_of_directions_not_of_lengths():
    """Features are normalised: longer vectors in the same direction fall into the same bucket."""
    p, _ = clouds(5, 0.0, num=60)
    labels, longer = quantise(p, 7 * p, MauveConfig(num_buckets=5))
    np.testing.assert_array_equal(labels, longer)


@pytest.fixture(scope="module")
def judge():
    model = CausalNetwork(
        CausalConfig(vocab_size=7, length=6, num_layers=1, embed_dim=8, num_heads=2)
    )
    return as_causal(model, noisy_params(model, 0, spread=0.7))


def test_features_are_the_state_of_the_last_token(judge):
    """Texts of different lengths in batches that they do not fill, against one text at a time."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 7, n, np.int32) for n in (6, 1, 4, 2, 6)]
    features = text_features(judge, texts, batch_size=2)
    assert features.shape == (5, 8)
    for text, feature in zip(texts, features, strict=True):
        alone = jax.jit(judge.network.hidden)(judge.params, text[None])[0, -1]
        np.testing.assert_allclose(feature, alone, rtol=1e-4, atol=1e-5)
    # Of a text longer than its training sequences, it reads the end.
    longer = [np.concatenate([text, texts[0]]) for text in texts]
    np.testing.assert_array_equal(
        text_features(judge, longer, batch_size=2), features[:1].repeat(5, 0)
    )


def test_a_judge_of_documents_reads_no_eos(judge):
    """It never did in training. Oracle: the last text's words on their own, after BOS."""
    facts = judge.facts | {"sequences": "documents", "ends": (5, 6)}
    judge = dataclasses.replace(judge, facts=facts)
    texts = [np.int32(text) for text in ([1, 2, 3, 6], [1, 2, 3], [4, 6, 1, 2, 6, 6], [6])]
    ended, open_end, second, _ = text_features(judge, texts, batch_size=4)
    alone = jax.jit(judge.network.hidden)(judge.params, np.int32([[5, 1, 2]]))[0, -1]
    np.testing.assert_array_equal(ended, open_end)
    np.testing.assert_allclose(second, alone, rtol=1e-4, atol=1e-5)


def test_features_of_gpt2_are_its_golden_final_states(golden):
    folder = golden / "gpt2_tiny"
    stored = np.load(folder / "forward.npz")
    features = text_features(sdtt_jax.load(folder), stored["tokens"], batch_size=2)
    np.testing.assert_allclose(features, stored["final_hidden"][:, -1], rtol=1e-4, atol=1e-5)


def test_features_of_a_text_longer_than_the_judge_can_see_are_those_of_its_end(golden):
    """GPT-2 learns its positions, so it has no more than these."""
    judge = sdtt_jax.load(golden / "gpt2_tiny")
    limit = judge.network.max_length
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, judge.config.vocab_size, limit + n, np.int32) for n in (3, 0, -1)]
    ends = [text[-limit:] for text in texts]
    found = text_features(judge, texts, batch_size=2)
    np.testing.assert_array_equal(found, text_features(judge, ends, batch_size=2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: mauve_score(p, p[:, :-1], MauveConfig(seed=0)), "must come from one judge"),
        (
            lambda p: mauve_score(p, p[:0], MauveConfig(seed=0)),
            r"features_q must be \[texts, features\]",
        ),
        (lambda p: mauve_score(p * np.nan, p, MauveConfig(seed=0)), "features_p holds NaN"),
        (lambda p: mauve_score(p, p, MauveConfig(seed=0, num_buckets=41)), "number of texts, 40"),
        (lambda p: mauve_score(p, p, MauveConfig(seed=0, scaling=0)), "scaling must be positive"),
        (
            lambda p: mauve_score(p, p, MauveConfig(seed=0, explained_variance=1)),
            r"lie in \(0, 1\), not 1",
        ),
        (lambda p: mauve_score(p, p, MauveConfig(seed=0, restarts=0)), "restarts must be positive"),
        (lambda p: mauve_score(p, p, MauveConfig(seed=0, points=0)), "points must be positive"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(np.random.default_rng(0).standard_normal((20, 4)))


def test_texts_without_tokens_are_refused(judge):
    for texts in ([], [np.zeros(0, np.int32)]):
        with pytest.raises(ConfigError, match="at least one token each"):
            text_features(judge, texts, batch_size=2)
