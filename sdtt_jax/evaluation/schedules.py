"""Schedules learnt for a number of calls: how many tokens each should reveal.

Where tokens are revealed in a random order, h(j) is the mean negative log-likelihood, under the model, of a
masked token when j random others are shown. A call that raises the number shown from a to b draws its b - a
tokens independently at h(a) each; one at a time, they would cost h(a), …, h(b - 1). So the calls cost

    sum over calls of (b - a) h(a) - (h(a) + … + h(b - 1))

nats more than single tokens. For the true denoiser, this is the divergence between the true and the sampled
distribution of a text together with its order (arXiv 2511.04647, 2510.25544), so that it bounds KL(data ||
samples). It is a sum over calls that depends on the counts alone, so dynamic programming finds its minimum
over all counts (as arXiv 2106.03802 finds times for a bound).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require, whole
from sdtt_jax.diffusion.calls import ranks
from sdtt_jax.diffusion.decoders.base import sigma_of_share
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import masked_nll
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.masked import Model

# Numbers of shown tokens are grouped into at most this many pieces. A schedule depends on differences of the
# curve, and on the demo (64 tokens, 16,384 maskings) one value for each number still gave schedules that
# followed the noise.
PIECES = 12


def information_curve(
    model: Model, tokens: np.ndarray, seed: int, *, num_maskings: int, batch_size: int
) -> np.ndarray:
    """h(0), …, h(L - 1), estimated on texts: `[length]` float64, nats, falling.

    Each masking shows a number of tokens, spread evenly over 0 … L - 1, at random places. More context never
    hurts on average, so a falling curve is fitted to the costs of masked tokens, weighted by their number.

    Args:
      model: the denoiser, whose positions all see each other.
      tokens: `[texts, length]` int32, no MASK.
      seed: of the maskings.
      num_maskings: of each text.
      batch_size: texts at once.
    """
    model.require_likelihood()
    whole(1, num_maskings=num_maskings)
    require(
        model.sequences is None,
        "A schedule can only be learnt for sequences whose positions all see each other; take "
        "mode=first-hitting.",
    )
    length, rows = tokens.shape[1], np.repeat(tokens, num_maskings, axis=0)
    rng = np.random.default_rng(seed)
    shown = (np.arange(len(rows)) + rng.random()) / len(rows) * length
    shown = np.minimum(shown, length - 1).astype(np.int32)
    key = purpose_key(seed, "evaluate.schedule")
    function = functools.partial(_mean_nll, model.diffusion, key)
    order = rng.permutation(len(rows))
    nll = map_batches(function, model.params, (rows[order], shown[order]), batch_size)
    counts = shown[order]
    weights = (length - counts).astype(float)
    _, group = np.unique(counts * min(length, PIECES) // length, return_inverse=True)
    total = np.bincount(group, weights)
    middles, means = (np.bincount(group, weights * x) / total for x in (counts, nll))
    return falling(middles, means, total, length)


def falling(counts: np.ndarray, means: np.ndarray, weights: np.ndarray, length: int) -> np.ndarray:
    """A falling curve through noisy values: `[length]`.

    The best falling fit (isotonic regression) is flat wherever the noisy values rise, as if several tokens at
    once cost nothing there. So the curve is linear from the middle of each flat piece to the middle of the
    next, and extrapolated linearly at both ends.

    Args:
      counts: `[n]` float64, rising, where values are known.
      means, weights: `[n]` float64.
      length: of the curve.
    """
    # As everywhere, SciPy is imported only when it is needed.
    from scipy.optimize import isotonic_regression

    fitted = isotonic_regression(means, weights=weights, increasing=False)
    block = np.repeat(np.arange(len(fitted.blocks) - 1), np.diff(fitted.blocks))
    middle = np.bincount(block, weights * counts) / np.bincount(block, weights)
    value = fitted.x[fitted.blocks[:-1]]
    if len(middle) > 1:
        ends = np.array([-1.0, length])
        slope = np.diff(value)[[0, -1]] / np.diff(middle)[[0, -1]]
        beyond = value[[0, -1]] + slope * (ends - middle[[0, -1]])
        beyond[1] = max(beyond[1], 0.0)
        middle = np.array([ends[0], *middle, ends[1]])
        value = np.array([beyond[0], *value, min(beyond[1], value[-1])])
    return np.interp(np.arange(length), middle, value)


@functools.partial(jax.jit, static_argnames="diffusion")
def _mean_nll(
    diffusion: MaskedDiffusion, key: jax.Array, params: Any, index: jax.Array, rows: Any
) -> jax.Array:
    x0, shown = rows
    uniform = jax.random.uniform(jax.random.fold_in(key, index), x0.shape, jnp.float32)
    masked = ranks(uniform) >= shown[:, None]
    share = masked.mean(axis=-1, dtype=jnp.float32)
    sigma = sigma_of_share(diffusion.schedule, share)
    x_t = jnp.where(masked, diffusion.mask_id, x0)
    nll = masked_nll(diffusion, params, x0, x_t, sigma)
    return nll.sum(axis=-1) / masked.sum(axis=-1, dtype=jnp.float32)


def gap(curve: np.ndarray, counts: tuple[int, ...]) -> float:
    """How much more calls with these counts cost than single tokens, in nats for a whole text.

    Args:
      curve: `[length]`, h(0) … h(length - 1).
      counts: tokens of each call, together `length`.
    """
    ends = np.cumsum(counts)
    calls = zip(ends - counts, ends, strict=True)
    return float(sum((b - a) * curve[a] - curve[a:b].sum() for a, b in calls if b > a))


def best_counts(curve: np.ndarray, num_steps: int) -> tuple[int, ...]:
    """The counts, one a call, with the smallest `gap` on a falling curve `[length]`.

    If there are more calls than tokens, the last counts are 0.
    """
    length = len(curve)
    calls = min(num_steps, length)
    before = np.concatenate([[0.0], np.cumsum(curve)])
    places = np.arange(length + 1)
    # cost[a, b] is that of one call from a to b tokens; each must reveal at least one.
    cost = (places - places[:, None]) * np.append(curve, 0.0)[:, None] - (before - before[:, None])
    cost = np.where(places > places[:, None], cost, np.inf)
    best, came_from = cost[0], []
    for _ in range(calls - 1):
        through = best[:, None] + cost
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    ends = [length]
    for table in reversed(came_from):
        ends.append(int(table[ends[-1]]))
    counts = np.diff([0, *reversed(ends)])
    return (*(int(count) for count in counts), *(0,) * (num_steps - calls))
