"""MAUVE: how far the distribution of generated text is from that of real text (arXiv 2102.01454).

Both sets of texts are quantised together, by their features under a causal judge, into histograms p and q.
With mixtures r of the two, KL(p ‖ r) measures what p has and q lacks, and KL(q ‖ r) the reverse. The area
under the curve of exp(-scaling * KL) is 1 for equal histograms and near 0 for disjoint ones. Scores compare
only with the same judge, text length, number of texts and scaling.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import given, positive, require, whole, within
from sdtt_jax.keys import check_seed
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.sequences import Sequences, as_read
from sdtt_jax.ops.tokens import as_ids

# The mixtures' weights keep this far from 0 and 1, where a KL may be infinite.
WEIGHT_MARGIN = 1e-6
TEXTS_PER_BUCKET = 10


@dataclasses.dataclass(frozen=True)
class MauveConfig:
    """How two sets of texts are compared."""

    seed: int = 0  # of the clustering
    # Buckets of the histograms; None means a tenth of the smaller set, at least 2.
    num_buckets: int | None = None
    scaling: float = 5.0  # the c of the paper
    explained_variance: float = 0.9  # share of the variance that the features' projection keeps
    restarts: int = 5  # clusterings, of which the one with the smallest distortion counts
    points: int = 25  # mixtures on the curve

    def __post_init__(self) -> None:
        within("(0, 1)", self, "explained_variance")
        positive(self, "scaling")
        whole(1, self, "restarts", "points", *given(self, "num_buckets"))
        check_seed(self.seed)


class Mauve(NamedTuple):
    """A score, and what it was computed from."""

    value: float  # MAUVE, in [0, 1]; more is closer
    # p, q: `[buckets]` float64, shares of the two sets' texts.
    p: np.ndarray
    q: np.ndarray
    curve: np.ndarray  # `[points + 2, 2]` float64, from `divergence_curve`


# Compiled once per network: real text and every set of samples are of one shape.
@functools.partial(jax.jit, static_argnames=("network", "sequences"))
def _feature_batch(
    network: CausalNetwork,
    sequences: Sequences | None,
    params: Any,
    index: jax.Array,
    batch: tuple[jax.Array, jax.Array],
) -> jax.Array:
    del index
    tokens, last = batch
    hidden = network.hidden(params, *as_read(tokens, sequences))
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)


def text_features(
    model: CausalModel, texts: Sequence[np.ndarray], *, batch_size: int
) -> np.ndarray:
    """Features of each text, `[texts, embed]` float64: a causal judge's last hidden state, after the norm.

    Of a text longer than the judge's context, the judge reads the end. A judge of `documents` reads no EOS:
    the state is that of the last other token, in a text of its own if an EOS precedes it.

    Args:
      model: the judge (the paper's is GPT-2 large).
      texts: int32 tokens `[n_i]`, in the judge's vocabulary and without BOS, as in the paper.
      batch_size: texts at once.
    """
    require(
        len(texts) > 0 and min(map(len, texts)) >= 1,
        "features need texts of at least one token each.",
    )
    sequences = model.sequences
    if sequences is not None and sequences.kind == "documents":
        words = [np.flatnonzero(np.not_equal(text, sequences.eos_id)) for text in texts]
        texts = [text[: at.max(initial=0) + 1] for text, at in zip(texts, words, strict=True)]
    texts = [text[-model.context :] for text in texts]
    lengths = np.array([len(text) for text in texts], np.int32)
    # The padding does not matter: a causal network computes the state at a text's end without it.
    rows = np.zeros((len(texts), lengths.max()), np.int32)
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        row[: len(text)] = as_ids(text, model.config.vocab_size, f"text {index}")
    function = functools.partial(_feature_batch, model.network, sequences)
    return np.asarray(map_batches(function, model.params, (rows, lengths - 1), batch_size))


def mauve_score(features_p: np.ndarray, features_q: np.ndarray, config: MauveConfig) -> Mauve:
    """MAUVE of two sets of texts, given their features.

    The value depends on the clustering: over seeds it varies by some hundredths for hundreds of texts.
    Take the mean of several, and 5,000 texts of each kind for figures like the paper's.

    Args:
      features_p, features_q: `[texts, features]`, of generated and of real text (or the other way round:
        the value is the same).
      config: clustering and curve.
    """
    labels_p, labels_q = quantise(features_p, features_q, config)
    buckets = int(max(labels_p.max(), labels_q.max())) + 1
    p, q = (np.bincount(labels, minlength=buckets) for labels in (labels_p, labels_q))
    p, q = p / p.sum(), q / q.sum()
    curve = divergence_curve(p, q, scaling=config.scaling, points=config.points)
    return Mauve(area_under(curve), p, q, curve)


def quantise(
    features_p: np.ndarray, features_q: np.ndarray, config: MauveConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns each text to a bucket: normalised features, principal components, k-means over both sets.

    From two arrays `[texts, features]`, two arrays `[texts]` of bucket numbers from 0; a bucket may be empty.
    """
    features_p, features_q = np.asarray(features_p), np.asarray(features_q)
    _check_features(features_p, features_q)
    total = len(features_p) + len(features_q)
    num_buckets = config.num_buckets
    if num_buckets is None:
        num_buckets = max(2, round(min(len(features_p), len(features_q)) / TEXTS_PER_BUCKET))
    require(
        num_buckets <= total,
        f"num_buckets={num_buckets} must lie between 1 and the number of texts, {total}.",
    )
    from scipy.cluster.vq import kmeans, vq  # takes half a second, and few programs cluster

    both = np.concatenate([features_p, features_q]).astype(np.float64)
    norm = np.linalg.norm(both, axis=1, keepdims=True)
    both = _project(both / np.where(norm == 0, 1, norm), config.explained_variance)
    rng = np.random.default_rng(config.seed)
    # Given its first centres, SciPy's k-means runs until the distortion no longer changes, and draws nothing.
    starts = (rng.choice(total, num_buckets, replace=False) for _ in range(config.restarts))
    runs = [kmeans(both, both[start]) for start in starts]
    centres, _ = min(runs, key=lambda run: float(run[1]))
    labels = vq(both, centres)[0]
    return labels[: len(features_p)], labels[len(features_p) :]


def _check_features(features_p: np.ndarray, features_q: np.ndarray) -> None:
    for name, features in (("features_p", features_p), ("features_q", features_q)):
        require(
            features.ndim == 2 and features.size > 0,
            f"{name} must be [texts, features] with at least one of each, not {features.shape}.",
        )
        require(len(features) > 1, f"{name} is of one text, which has no distribution.")
        require(bool(np.isfinite(features).all()), f"{name} holds NaN or infinite values.")
    require(
        features_p.shape[1] == features_q.shape[1],
        f"features_p and features_q have {features_p.shape[1]} and {features_q.shape[1]} features; "
        "they must come from one judge.",
    )


def _project(rows: np.ndarray, explained_variance: float) -> np.ndarray:
    """Projects rows on as few principal components as explain the given share of the variance."""
    centred = rows - rows.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    share = np.cumsum(variances) / max(variances.sum(), np.finfo(np.float64).tiny)
    kept = min(int((share < explained_variance).sum()) + 1, len(share))
    return np.asarray(centred @ directions[:, :kept])


def divergence_curve(p: np.ndarray, q: np.ndarray, *, scaling: float, points: int) -> np.ndarray:
    """The curve of divergences of two histograms from their mixtures.

    Args:
      p, q: `[buckets]` float64, each of sum 1.
      scaling: the c of the paper.
      points: how many mixtures r = w p + (1 - w) q, w evenly spaced.

    Returns:
      `[points + 2, 2]` float64: exp(-c KL(q ‖ r)) and exp(-c KL(p ‖ r)), with the ends (1, 0) and (0, 1).
    """
    from scipy.special import rel_entr

    require(p.shape == q.shape and p.ndim == 1, f"histograms of {p.shape} and {q.shape} buckets.")
    w = np.linspace(WEIGHT_MARGIN, 1 - WEIGHT_MARGIN, points)[:, None]
    r = w * p + (1 - w) * q
    inner = np.stack([rel_entr(q, r).sum(axis=1), rel_entr(p, r).sum(axis=1)], axis=1)
    inner = np.maximum(inner, 0)  # rounding of equal histograms would pass the curve's ends
    return np.concatenate([[[1.0, 0.0]], np.exp(-scaling * inner), [[0.0, 1.0]]])


def area_under(curve: np.ndarray) -> float:
    """The area under a divergence curve by trapezoids, averaged over both choices of the axes."""
    areas = []
    for x, y in (curve.T, curve.T[::-1]):
        order = np.lexsort((-y, x))  # the curve falls, also where equal histograms make it vertical
        areas.append(np.trapezoid(y[order], x[order]))
    return min(float(np.mean(areas)), 1.0)  # rounding may pass 1
