"""Tokens for some positions of partly masked sequences: from one network call, or from hidden states."""

from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.choices import Choice
from sdtt_jax.diffusion.decoders.base import Pick
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.ops.noise import Noise
from sdtt_jax.ops.rows import Chunks, map_selected
from sdtt_jax.typing import Hidden, Params, PerSequence, Positions, Tokens

# Of n positions a step of a generation reveals about n / num_steps. A chunk of a twelfth nearly always holds
# what one of 16 steps reveals; smaller ones read the head's kernel twice (1024 positions, 50k tokens, two CPU
# cores: 64 rows take 47 ms at once and 100 ms in halves).
CHUNKS = Chunks(scope="reveal_rows", parts=12)


def reveal(
    diffusion: MaskedDiffusion,
    params: Params,
    x: Tokens,
    selected: Positions,
    sigma: PerSequence,
    choose: Choice,
    key: Any = None,
    noise: Noise | None = None,
    pick: Pick | None = None,
) -> tuple[Tokens, jax.Array]:
    """`fill` from one network call at `sigma`, and how many calls that were: none if nothing is selected.

    (Its arguments are many because a step has settled them one by one.)
    """

    def call(x: jax.Array) -> jax.Array:
        hidden = diffusion.hidden(params, x, sigma, noise)
        return fill(diffusion, params, x, hidden, selected, choose, key, noise, pick)

    needed = selected.any()
    return jax.lax.cond(needed, call, lambda x: x, x), needed.astype(jnp.int32)


def fill(
    diffusion: MaskedDiffusion,
    params: Params,
    x: Tokens,
    hidden: Hidden,
    selected: Positions,
    choose: Choice,
    key: Any,
    noise: Noise | None = None,
    pick: Pick | None = None,
) -> Tokens:
    """`x` with the tokens that `choose` takes at the selected positions, or at those of them that `pick`
    accepts; the head runs at the selected ones alone.

    (Its arguments are many because a call has settled them one by one.)

    MASK and the padding stand after the vocabulary and are impossible: no noise is drawn for them. At 30
    tokens padded to 128 that is 7 ms instead of 24 for a batch of 64 × 64 on two CPU cores.
    """
    denoiser = diffusion.denoiser

    def read(rows: tuple[jax.Array, jax.Array, Any], shared: Any) -> tuple[Any, tuple[()]]:
        (hidden, places, noise), (head, key) = rows, shared
        logits = denoiser.logits(head, hidden)[:, : denoiser.mask_id]
        tokens = choose(key, logits, places, noise)
        return (tokens if pick is None else (tokens, pick.score(jax.nn.log_softmax(logits)))), ()

    places = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
    rows, shared = (hidden, places, noise), (denoiser.head_params(params), key)
    rest = x if pick is None else (x, jnp.zeros((*x.shape, *pick.columns), jnp.float32))
    found, _ = map_selected(read, selected, rows, shared, denoiser.padded_vocab, CHUNKS, fill=rest)
    if pick is None:
        return found
    tokens, score = found
    return jnp.where(pick.accept(score, selected), tokens, x)
