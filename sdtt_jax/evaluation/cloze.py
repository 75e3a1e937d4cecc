"""How well a model continues a given beginning: LAMBADA's last words, and multiple choice.

A denoiser sees the whole row, `[BOS] prefix suffix [EOS]` with the EOS visible, as in the reference. Its
likelihood of the suffix is a bound, estimated over random maskings of the suffix, and its greedy answer is
what it fills in for the whole suffix at once. A causal network's likelihood and greedy answer are exact.
Rows of one length are scored together, in batches of one size.
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
from sdtt_jax.diffusion.estimators import ESTIMATORS, NEVER, BoundConfig, MaskNoise, masking_bound
from sdtt_jax.diffusion.forward import SAMPLING_EPS
from sdtt_jax.diffusion.reverse import final_denoise
from sdtt_jax.evaluation.continuations import (
    CONFINED,
    MOST_FILLED,
    Choice,
    Continuation,
    RowLayout,
    Rows,
    lay_out,
    layout_of,
)
from sdtt_jax.keys import check_key
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.sequences import PADDING, Arrangement
from sdtt_jax.progress import Progress

# Rows are made for this many batches at a time, so that the maskings of a large set fit in memory.
BATCHES_AT_ONCE = 32


class ItemScores(NamedTuple):
    """A model's scores of the items."""

    # `[items]` float64, -log p(suffix | prefix) in nats: exact for a causal model, a bound from above for a
    # denoiser.
    nll: np.ndarray
    # `[items]` bool, whether the suffix is what the model itself would write: by greedy decoding, or in one
    # call for the whole suffix.
    greedy: np.ndarray


def scores(
    model: Model | CausalModel,
    items: Sequence[Continuation],
    key: jax.Array,
    config: BoundConfig,
    layout: RowLayout | None = None,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> ItemScores:
    """Likelihood of each suffix after its prefix, and whether it is greedy, by a model of either kind.

    A denoiser's bound is the mean over maskings of the suffix. LAMBADA's perplexity in the reference is the
    exponential of the mean over texts, with the estimator "antithetic"; its accuracy is the mean of `greedy`.

    Args:
      model: with a tokenizer, which says what stands around the text, unless there is a layout.
      items: what to score.
      key: PRNG key of a denoiser's maskings; an item's draws depend on it and on the item's ids, but not on
        the batches or on its place among the items.
      config: how many maskings a denoiser's bound takes, and how each is drawn. Estimators that spread their
        times do so over the maskings of an item. "counts" does not weight early times by 1/t, so that for a
        suffix of one token a single masking is exact.
      layout: what stands around the texts; None is the model's own. A causal model's must have no EOS, and
        BOS unless every prefix has a token to begin with; its context also limits the length of rows.
      batch_size: rows at once; a row is one masking of an item, or one item of a causal model.
      progress: told how many of these rows are done.

    Raises:
      ConfigError: as `lay_out`, or no draw masked anything; the model is a function of its noise and has no
        likelihood, or one of every n-th token; or the layout is not for causal models.
    """
    if isinstance(model, CausalModel):
        model.require_whole_texts()
        return _causal_scores(model, items, layout or layout_of(model), batch_size, progress)
    model.require_likelihood()
    check_key(key)
    rows = lay_out(items, layout or layout_of(model), model.mask_id)
    bound = functools.partial(_bound_batch, model.diffusion, config, model.near(key))
    values = _map_items(bound, model.params, rows, config.num_maskings, batch_size, progress)
    nats, masked = np.moveaxis(values, -1, 0)
    require(
        bool(masked.any()),
        f"none of the {masked.size} draws masked a token, so they say nothing about the suffixes; take more "
        "maskings or items, or the estimator 'counts'.",
    )
    hit = functools.partial(_hit_batch, model.diffusion)
    hits = _map_items(hit, model.params, rows, 1, batch_size, None)[:, 0]
    return ItemScores(np.asarray(nats.mean(axis=1)), hits.astype(bool))


def _causal_scores(
    model: CausalModel,
    items: Sequence[Continuation],
    layout: RowLayout,
    batch_size: int,
    progress: Progress | None,
) -> ItemScores:
    begun = layout.bos_id is not None or all(len(item.prefix) > 0 for item in items)
    require(begun, "a causal network needs layout.bos_id before a text without a prefix.")
    require(
        layout.eos_id is None,
        "a causal network sees nothing after the text; set layout.eos_id=None.",
    )
    # The last token is predicted and never read, so a row holds one more than the network reads.
    most = model.context + 1
    layout = dataclasses.replace(layout, max_length=min(layout.max_length or most, most))
    rows = lay_out(items, layout, 0, model.network.config.vocab_size)
    score = functools.partial(_causal_batch, model.network)
    values = _map_items(score, model.params, rows, 1, batch_size, progress)[:, 0]
    return ItemScores(values[:, 0], values[:, 1] == 1)


class ChoiceHits(NamedTuple):
    """Which items were answered correctly, `[items]` bool each; the means are the accuracies."""

    plain: np.ndarray  # whether the most likely ending is the right one
    # The same with log-likelihoods divided by the number of characters (without the space before an
    # ending), as lm-evaluation-harness normalises.
    normalised: np.ndarray


def choice_hits(choices: Sequence[Choice], nll: np.ndarray) -> ChoiceHits:
    """Compares the most likely ending of each item with the right one.

    Args:
      choices: the items.
      nll: `[endings of all items]`, nats of each ending, in the order of
        `[c for choice in choices for c in choice.clozes()]`: the `ItemScores.nll` of the encoded clozes.
    """
    counts = [len(choice.endings) for choice in choices]
    total = sum(counts)
    require(len(nll) == total, f"{len(nll)} values for {total} endings; give one for each.")
    hits = []
    for choice, part in zip(choices, np.split(nll, np.cumsum(counts)[:-1]), strict=True):
        characters = np.array([max(1, len(ending.removeprefix(" "))) for ending in choice.endings])
        hits.append([np.argmin(each) == choice.answer for each in (part, part / characters)])
    return ChoiceHits(*np.array(hits).T)


def _map_items(
    score: Callable[[Any, jax.Array, Rows], jax.Array],
    params: Any,
    groups: Sequence[Rows],
    num_maskings: int,
    batch_size: int,
    progress: Progress | None,
) -> np.ndarray:
    """Applies `score` to `num_maskings` rows of every item: `[items, num_maskings, …]`, in their order."""
    turn = max(batch_size, 1) * BATCHES_AT_ONCE
    done, results, order = 0, [], []
    for rows in groups:
        count = len(rows.item) * num_maskings
        values = []
        for first in range(0, count, turn):
            index = np.arange(first, min(first + turn, count))
            part = Rows(*(array[index // num_maskings] for array in rows))
            part = part._replace(masking=(index % num_maskings).astype(np.int32))
            values.append(map_batches(score, params, part, batch_size))
            done += len(index)
            if progress is not None:
                progress.update(done, {})
        whole = np.concatenate(values)
        results.append(whole.reshape(len(rows.item), num_maskings, *whole.shape[1:]))
        order.append(rows.item)
    return np.concatenate(results)[np.argsort(np.concatenate(order))]


@functools.partial(jax.jit, static_argnames=("diffusion", "config"))
def _bound_batch(
    diffusion: MaskedDiffusion,
    config: BoundConfig,
    key: jax.Array,
    params: Any,
    index: jax.Array,
    rows: Rows,
) -> jax.Array:
    del index
    noise = jax.vmap(functools.partial(_noise, config, key, rows.tokens.shape[1]))
    u, tokens = noise(rows.digest, rows.masking)
    tokens = jnp.where(_inside(rows), tokens, NEVER)
    diffusion = _without_padding(diffusion, rows)
    masking = ESTIMATORS[config.estimator].mask(diffusion, rows.tokens, MaskNoise(u, tokens))
    nats = masking_bound(diffusion, params, rows.tokens, masking)
    masked = ((masking.x_t == diffusion.mask_id) & _inside(rows)).sum(axis=-1)
    return jnp.stack([nats, masked.astype(jnp.float32)], axis=-1)


def _noise(
    config: BoundConfig, key: jax.Array, length: int, digest: jax.Array, masking: jax.Array
) -> MaskNoise:
    """The noise of one masking of an item; spread times divide [0, 1) evenly, with a common shift."""
    key_u, key_masks = jax.random.split(jax.random.fold_in(key, digest))
    tokens = jax.random.uniform(jax.random.fold_in(key_masks, masking), (length,), jnp.float32)
    if ESTIMATORS[config.estimator].spread:
        part = masking.astype(jnp.float32) / config.num_maskings
        u = (jax.random.uniform(key_u, (), jnp.float32) + part) % 1.0
    else:
        u = jax.random.uniform(jax.random.fold_in(key_u, masking), (), jnp.float32)
    return MaskNoise(u, tokens)


def _without_padding(diffusion: MaskedDiffusion, rows: Rows) -> MaskedDiffusion:
    """The model that does not see what `lay_out` puts after texts, if its network can be confined to them."""
    if type(diffusion.denoiser) not in CONFINED or rows.tokens.shape[1] > MOST_FILLED:
        return diffusion
    text = rows.tokens != diffusion.mask_id
    return diffusion.within(Arrangement(jnp.where(text, 0, PADDING), text))


def _inside(rows: Rows) -> jax.Array:
    """The suffix of each row: `[rows, length]` bool."""
    place = jnp.arange(rows.tokens.shape[1], dtype=jnp.int32)
    return (place >= rows.start[:, None]) & (place < rows.stop[:, None])


@functools.partial(jax.jit, static_argnames="diffusion")
def _hit_batch(diffusion: MaskedDiffusion, params: Any, index: jax.Array, rows: Rows) -> jax.Array:
    del index
    diffusion = _without_padding(diffusion, rows)
    inside = _inside(rows)
    x_t = jnp.where(inside, diffusion.mask_id, rows.tokens)
    filled, _ = final_denoise(diffusion, params, x_t, jnp.float32(SAMPLING_EPS))
    return jnp.all((filled == rows.tokens) | ~inside, axis=-1)


@functools.partial(jax.jit, static_argnames="network")
def _causal_batch(network: CausalNetwork, params: Any, index: jax.Array, rows: Rows) -> jax.Array:
    del index
    inputs, targets = rows.tokens[:, :-1], rows.tokens[:, 1:]
    nll, missed = next_token_scores(network, params, inputs, targets, _inside(rows)[:, 1:])
    return jnp.stack([nll.sum(axis=-1), ~missed.any(axis=-1)], axis=-1)
