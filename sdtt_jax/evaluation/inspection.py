"""Checks how a loaded model was recognised, by its loss on real text under every possible reading.

A checkpoint that is loaded wrongly (with the other kind of attention, or predictions off by one position)
still computes plausible numbers. Its loss shows the mistake: that of the right reading is by far the lowest.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdtt_jax.causal.nll import next_token_nll
from sdtt_jax.config import require, whole
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.evaluation.bootstrap import shares
from sdtt_jax.evaluation.likelihood import text_bounds
from sdtt_jax.evaluation.record import Json
from sdtt_jax.interchange.relatives import ORIGIN
from sdtt_jax.model.batches import join, map_batches
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.config import PublishedConfig, as_denoiser
from sdtt_jax.networks.kinds import network_of
from sdtt_jax.ops.head_loss import selected_losses
from sdtt_jax.typing import Params, PerSequence, Tokens

BATCH = 8


class Reading(NamedTuple):
    """A way to read a network."""

    causal: bool  # a position sees only those before it
    shift: bool  # the logits of a position predict the token after it

    def __str__(self) -> str:
        attention = "causal" if self.causal else "bidirectional"
        return f"{attention}, {'with' if self.shift else 'without'} shift"


def recognised(model: Model | CausalModel) -> Json:
    """How a model was recognised, JSON-ready."""
    tokenizer, facts = model.tokenizer, model.facts
    published = facts.get("published_config", {})
    return {
        "path": facts["path"],
        "layout": facts.get("layout", "sdtt_jax"),
        "model_type": published.get(ORIGIN, published.get("model_type")),
        "kind": facts["kind"],
        "config": dataclasses.asdict(model.config),
        "parameters": model.num_parameters,
        # Tensors of one file may differ.
        "stored_as": ", ".join(sorted({*facts.get("dtypes", {}).values()}))
        or facts.get("dtype", "F32"),
        "mask_row": facts.get("mask_row"),
        # Share of the training noise that was random tokens instead of MASK; this library draws no such
        # tokens.
        "uniform_share": facts.get("uniform_share", 0.0),
        "tokenizer": tokenizer
        and {
            "kind": tokenizer.config.kind,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "vocab_size": tokenizer.vocab_size,
        },
    }


def own_reading(model: Model | CausalModel) -> Reading:
    """The reading under which a model was loaded."""
    if isinstance(model, CausalModel):
        return Reading(causal=True, shift=True)
    config: Any = model.config
    return Reading(getattr(config, "causal", False), getattr(config, "shift", False))


def losses(
    model: Model | CausalModel, tokens: np.ndarray, key: jax.Array, *, num_maskings: int
) -> dict[Reading, float]:
    """The loss of real text under each reading that a network allows, nats per token.

    For a denoiser it is the bound, with the same masks for all readings, drawn as in `text_bounds`. For a
    causal model it is the cross-entropy of the last token of pieces of text. The network reads another token
    in its place; otherwise, with bidirectional attention, it would see the token that it is to predict.

    Args:
      model: a network of the Llama family, or a GPT-2, has four readings.
      tokens: `[texts, length]` int32.
      key: PRNG key.
      num_maskings: maskings of each text, or pieces into which it is cut.

    Raises:
      ConfigError: `num_maskings` is none, or a causal model gets texts of one token.
    """
    whole(1, num_maskings=num_maskings)
    readings, found = [own_reading(model)], {}
    if isinstance(model.config, PublishedConfig):
        readings = [Reading(*flags) for flags in itertools.product((False, True), repeat=2)]
    if isinstance(model, CausalModel):
        rows = _pieces(tokens, num_maskings)
        for reading in readings:
            function = functools.partial(_nll, model.network, reading)
            found[reading] = float(map_batches(function, model.params, rows, BATCH).mean())
        return found
    config = BoundConfig("low-variance", num_maskings)
    for reading in readings:
        batches = text_bounds(_read_as(model, reading), tokens, key, config, batch_size=BATCH)
        bounds = join([batch() for batch in batches])
        found[reading] = float((bounds.nelbo * shares(bounds.counted)[:, None]).mean())
    return found


def _pieces(tokens: np.ndarray, count: int) -> np.ndarray:
    """`count` pieces of half the length of each text, or of 2 tokens if that is more: `[texts * count, n]`.

    With one token, what is read in its place would be the very token that is to be predicted.
    """
    require(
        tokens.shape[1] > 1,
        "The last token of a text is predicted from those before it, so texts of 1 token have no loss; take "
        "2 tokens or more.",
    )
    width = max(2, -(-tokens.shape[1] // 2))
    ends = np.linspace(width, tokens.shape[1], count).round().astype(int)
    return np.concatenate([tokens[:, end - width : end] for end in ends])


def _read_as(model: Model, reading: Reading) -> Model:
    sizes: Any = model.config
    if not isinstance(sizes, PublishedConfig):
        return model
    config = dataclasses.replace(sizes, **reading._asdict())
    return dataclasses.replace(model, denoiser=network_of(config))


@functools.partial(jax.jit, static_argnames=("network", "reading"))
def _nll(
    network: Any, reading: Reading, params: Params, index: jax.Array, tokens: Tokens
) -> PerSequence:
    """-log p of the last token of each row: `[rows]` float32."""
    del index
    last = jnp.broadcast_to(jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1, tokens.shape)
    if not isinstance(network.config, PublishedConfig):
        targets, before = jnp.roll(tokens, -1, axis=1), jnp.roll(last, -1, axis=1)
        return next_token_nll(network, params, tokens, targets, before)[:, -2]
    reader = network_of(as_denoiser(network.config, **reading._asdict()))
    # Which token takes its place does not matter; the first of the row does not tell what the last one is.
    hidden = reader.hidden(params, jnp.where(last, tokens[:, :1], tokens))
    loss = optax.softmax_cross_entropy_with_integer_labels
    return selected_losses(network, params, loss, hidden, last, tokens)[:, -1]
