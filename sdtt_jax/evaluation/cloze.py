"""How well a model continues a given beginning: LAMBADA's last words, and multiple choice.

A denoiser sees the whole row, `[BOS] prefix suffix [EOS]` with the EOS visible, as the reference puts it;
its likelihood of the suffix is a bound, estimated over random maskings of the suffix, and its greedy
answer is what it fills in for the whole suffix at once. A causal network's likelihood and greedy answer
are exact. Rows of one length are worked off together, in batches of one size.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.causal.nll import next_token_scores
from sdtt_jax.config import require
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS, mask_tokens
from sdtt_jax.diffusion.nelbo import masked_nll, nelbo_weight
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.batches import batch_rows, map_batches
from sdtt_jax.evaluation.continuations import Choice, Continuation, Layout, Rows, lay_out
from sdtt_jax.evaluation.likelihood import greedy_infill
from sdtt_jax.networks.causal import CausalNetwork

ESTIMATORS = ("times", "counts")
# Told how many of how many rows are done.
Progress = Callable[[int, int], None]
# Batches for which rows are laid out at a time, so that the maskings of a large set fit in memory.
BATCHES_AT_ONCE = 32


def suffix_bounds(
    diffusion: MaskedDiffusion,
    params: Any,
    items: Sequence[Continuation],
    key: jax.Array,
    layout: Layout,
    *,
    num_samples: int,
    batch_size: int,
    estimator: str = "times",
    progress: Progress | None = None,
) -> np.ndarray:
    """Bounds on -log p(suffix | prefix) under a denoiser: `[items]` float64, nats of the whole suffix.

    Each is the mean over `num_samples` maskings of the suffix. LAMBADA's perplexity in the reference is
    the exponential of the mean over texts.

    Args:
      diffusion, params: the model, on one device or on a mesh.
      items: what to score.
      key: item i draws from `fold_in(key, i)`, whatever the batches are.
      layout: see `Layout`.
      num_samples: maskings of each item.
      batch_size: rows at once; a row is one masking of one item.
      estimator: how a masking is drawn. "times", as the reference: a time, and each token masked with
        that time's chance; the times of an item are antithetic (one uniform draw and an even grid).
        "counts": how many tokens are masked, from 1 to all, on such a grid, and which; without the
        weight 1/t of early times, so that for a suffix of one token a single masking is exact. It
        estimates the same bound (the schedule's eps apart) for networks that see no time.
      progress: told rows done and rows in all.

    Raises:
      ConfigError: no items, an unknown estimator, numbers that are not positive, a suffix that
        exceeds `layout.max_length`, or "counts" for a time-conditioned network.
    """
    require(num_samples >= 1, f"num_samples must be positive, not {num_samples}.")
    require(
        estimator in ESTIMATORS,
        f"estimator={estimator!r} is unknown; choose one of {', '.join(ESTIMATORS)}.",
    )
    conditioned = getattr(getattr(diffusion.denoiser, "config", None), "time_conditioned", False)
    require(
        estimator == "times" or not conditioned,
        "estimator='counts' masks without a time, which a time-conditioned network needs; use 'times'.",
    )
    score = functools.partial(_bound_batch, diffusion, estimator, key, num_samples)
    rows = lay_out(items, layout, diffusion.mask_id)
    values = _map_items(score, params, rows, num_samples, batch_size, progress)
    return values.mean(axis=1)


def replayed_bounds(
    diffusion: MaskedDiffusion,
    params: Any,
    item: Continuation,
    x_t: np.ndarray,
    t: np.ndarray,
    layout: Layout,
    *,
    batch_size: int,
) -> np.ndarray:
    """What each of given maskings of one item says of its bound: `[maskings]` float64, nats.

    With the maskings that another implementation drew, its numbers must come out.

    Args:
      diffusion, params, layout, batch_size: as in `suffix_bounds`.
      item: the text.
      x_t: `[maskings, length]` int32, the item's row with suffix tokens masked.
      t: `[maskings]` float32, their times.

    Raises:
      ConfigError: `x_t` is not that row outside of its masks, or masks something other than the suffix.
    """
    [rows] = lay_out([item], layout, diffusion.mask_id)
    x0, [start], [stop] = rows.tokens, rows.start, rows.stop
    place = np.arange(x0.shape[1])
    masked = x_t == diffusion.mask_id
    require(
        x_t.shape[1:] == x0.shape[1:]
        and bool(np.all(masked | (x_t == x0)))
        and not np.any(masked & ((place < start) | (place >= stop)) & (x0 != diffusion.mask_id)),
        "x_t must be the item's row, of the layout's form, with masks in the suffix only.",
    )
    score = functools.partial(_replay_batch, diffusion)
    inside = np.broadcast_to((place >= start) & (place < stop), x_t.shape)
    given = (np.broadcast_to(x0, x_t.shape), x_t.astype(np.int32), t.astype(np.float32), inside)
    values: np.ndarray = map_batches(score, params, given, batch_size)
    return values


def greedy_hits(
    diffusion: MaskedDiffusion,
    params: Any,
    items: Sequence[Continuation],
    layout: Layout,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Whether one call of the denoiser finds every token of the masked suffix: `[items]` bool.

    Their mean is LAMBADA's accuracy. Arguments and errors as in `suffix_bounds`.
    """
    score = functools.partial(_hit_batch, diffusion)
    rows = lay_out(items, layout, diffusion.mask_id)
    return _map_items(score, params, rows, 1, batch_size, progress)[:, 0].astype(bool)


class CausalScores(NamedTuple):
    """What a causal network says of each item.

    Attributes:
      nll: `[items]` float64, -log p(suffix | prefix) in nats, exact.
      greedy: `[items]` bool, whether the suffix is what greedy decoding writes.
    """

    nll: np.ndarray
    greedy: np.ndarray


def causal_scores(
    network: CausalNetwork,
    params: Any,
    items: Sequence[Continuation],
    layout: Layout,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> CausalScores:
    """Likelihood of each suffix after its prefix under a causal network, and whether it is greedy.

    Args:
      network, params: the network, on one device or on a mesh.
      items: what to score.
      layout: BOS is needed, EOS must be None; rows are at most as long as the network has positions.
      batch_size: rows at once; every item is one row.
      progress: told rows done and rows in all.

    Raises:
      ConfigError: no items, a layout without BOS or with EOS, or a suffix that is too long.
    """
    bos_id = layout.bos_id
    if bos_id is None:
        raise ConfigError("a causal network needs layout.bos_id before the text.")
    require(
        layout.eos_id is None, "a causal network sees nothing behind the text: no layout.eos_id."
    )
    if network.max_length is not None:
        # The last token is predicted and never read, so a row holds one more than the network reads.
        most = network.max_length + 1
        layout = dataclasses.replace(layout, max_length=min(layout.max_length or most, most))
        rows = [r._replace(tokens=r.tokens[:, :most]) for r in lay_out(items, layout, bos_id)]
    else:
        rows = lay_out(items, layout, bos_id)
    score = functools.partial(_causal_batch, network)
    values = _map_items(score, params, rows, 1, batch_size, progress)[:, 0]
    return CausalScores(values[:, 0], values[:, 1] == 1)


class ChoiceHits(NamedTuple):
    """Which items were answered rightly; the means are the accuracies.

    Attributes:
      plain: `[items]` bool, the most likely ending is the right one.
      normalised: `[items]` bool, likewise by nats for each character of an ending (its leading spaces not
        counted), as lm-evaluation-harness normalises.
    """

    plain: np.ndarray
    normalised: np.ndarray


def choice_hits(choices: Sequence[Choice], nll: np.ndarray) -> ChoiceHits:
    """Answers by likelihood.

    Args:
      choices: the items.
      nll: `[endings of all items]`, nats of each ending, in the order of
        `[c for choice in choices for c in choice.clozes()]`: what `suffix_bounds` or `causal_scores` gives
        for the encoded clozes.

    Raises:
      ConfigError: there are more or fewer values than endings.
    """
    counts = [len(choice.endings) for choice in choices]
    require(
        len(nll) == sum(counts), f"{len(nll)} values for {sum(counts)} endings; give one for each."
    )
    plain, normalised = [], []
    for choice, part in zip(choices, np.split(nll, np.cumsum(counts)[:-1]), strict=True):
        characters = np.array([max(1, len(ending.lstrip())) for ending in choice.endings])
        plain.append(int(np.argmin(part)) == choice.answer)
        normalised.append(int(np.argmin(part / characters)) == choice.answer)
    return ChoiceHits(np.array(plain), np.array(normalised))


def _map_items(
    score: Callable[[Any, jax.Array, Rows], jax.Array],
    params: Any,
    groups: Sequence[Rows],
    num_samples: int,
    batch_size: int,
    progress: Progress | None,
) -> np.ndarray:
    """`score` of `num_samples` rows of every item: `[items, num_samples, …]`, in the items' order."""
    require(batch_size >= 1, f"batch_size must be positive, not {batch_size}.")
    turn = batch_rows(params, batch_size) * BATCHES_AT_ONCE
    total = num_samples * sum(len(rows.item) for rows in groups)
    done, found, order = 0, [], []
    for rows in groups:
        count = len(rows.item) * num_samples
        values = []
        for first in range(0, count, turn):
            index = np.arange(first, min(first + turn, count))
            part = Rows(*(array[index // num_samples] for array in rows))
            part = part._replace(sample=(index % num_samples).astype(np.int32))
            values.append(map_batches(score, params, part, batch_size))
            done += len(index)
            if progress is not None:
                progress(done, total)
        whole = np.concatenate(values)
        found.append(whole.reshape(len(rows.item), num_samples, *whole.shape[1:]))
        order.append(rows.item)
    return np.concatenate(found)[np.argsort(np.concatenate(order))]


@functools.partial(jax.jit, static_argnames=("diffusion", "estimator"))
def _bound_batch(
    diffusion: MaskedDiffusion,
    estimator: str,
    key: jax.Array,
    num_samples: jax.Array,
    params: Any,
    index: jax.Array,
    rows: Rows,
) -> jax.Array:
    del index
    schedule = diffusion.schedule
    place = jnp.arange(rows.tokens.shape[1])
    inside = (place >= rows.start[:, None]) & (place < rows.stop[:, None])
    offset, uniform = jax.vmap(_noise, (None, 0, 0, None))(key, rows.item, rows.sample, len(place))
    # Even parts of [0, 1), one for each masking of an item, shifted alike.
    u = (offset + rows.sample / num_samples) % 1.0
    uniform = jnp.where(inside, uniform, 2.0)
    if estimator == "times":
        t = SAMPLING_EPS + (1.0 - SAMPLING_EPS) * u
        chance, sigma, weight = (
            schedule.move_chance(t),
            schedule.sigma(t),
            nelbo_weight(schedule, t),
        )
        x_t = mask_tokens(rows.tokens, uniform, chance, diffusion.mask_id)
    else:
        tokens = rows.stop - rows.start
        masked = jnp.minimum(1 + jnp.floor(u * tokens), tokens).astype(jnp.int32)
        rank = jnp.argsort(jnp.argsort(uniform, axis=-1), axis=-1)
        x_t = jnp.where(rank < masked[:, None], diffusion.mask_id, rows.tokens).astype(jnp.int32)
        sigma, weight = jnp.zeros(len(u)), tokens / masked
    nll = masked_nll(diffusion, params, rows.tokens, x_t, sigma)
    return jnp.where(inside, nll, 0).sum(axis=-1) * weight


def _noise(
    key: jax.Array, item: jax.Array, sample: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
    """An item's shift of its grid, `[]`, and the uniform numbers of one of its maskings, `[length]`."""
    key_shift, key_masks = jax.random.split(jax.random.fold_in(key, item))
    masks = jax.random.uniform(jax.random.fold_in(key_masks, sample), (length,))
    return jax.random.uniform(key_shift), masks


@functools.partial(jax.jit, static_argnames="diffusion")
def _replay_batch(
    diffusion: MaskedDiffusion, params: Any, index: jax.Array, rows: Any
) -> jax.Array:
    del index
    x0, x_t, t, inside = rows
    nll = masked_nll(diffusion, params, x0, x_t, diffusion.schedule.sigma(t))
    return jnp.where(inside, nll, 0).sum(axis=-1) * nelbo_weight(diffusion.schedule, t)


@functools.partial(jax.jit, static_argnames="diffusion")
def _hit_batch(diffusion: MaskedDiffusion, params: Any, index: jax.Array, rows: Rows) -> jax.Array:
    del index
    place = jnp.arange(rows.tokens.shape[1])
    inside = (place >= rows.start[:, None]) & (place < rows.stop[:, None])
    x_t = jnp.where(inside, diffusion.mask_id, rows.tokens)
    filled = greedy_infill(diffusion, params, x_t, jnp.float32(SAMPLING_EPS))
    return jnp.all((filled == rows.tokens) | ~inside, axis=-1)


@functools.partial(jax.jit, static_argnames="network")
def _causal_batch(network: CausalNetwork, params: Any, index: jax.Array, rows: Rows) -> jax.Array:
    del index
    inputs, targets = rows.tokens[:, :-1], rows.tokens[:, 1:]
    place = jnp.arange(1, rows.tokens.shape[1])
    inside = (place >= rows.start[:, None]) & (place < rows.stop[:, None])
    nll, missed = next_token_scores(network, params, inputs, targets, inside)
    return jnp.stack([nll.sum(axis=-1), ~missed.any(axis=-1)], axis=-1)
