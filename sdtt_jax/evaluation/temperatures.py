"""A temperature for each call of a schedule, learnt by comparison with drawing one token at a time.

A call draws its tokens y independently, from q_T at the temperature T. One at a time, they would have the
model's own joint distribution p, whose marginals are q_1. The more peaked q_T is, the more probable is what
it writes, and the more of p it leaves out. The tokens that the call finds shown are taken from real text, and
both divergences weigh alike; up to a constant, together they are

    KL(p || q_T) + KL(q_T || p) = sum over tokens of KL(q_1 || q_T) + KL(q_T || q_1)
                                  + the mean over y ~ q_T of log q_1(y) - log p(y).

The sum over tokens takes one network call. log p(y) is a sum over the tokens in a random order, of which one
term is sampled: some of y are shown, and the mean over the others is multiplied by the number of tokens in
y. Where a call draws one token, the last term is zero and the best temperature is 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.calls import ranks
from sdtt_jax.diffusion.decoders.base import sigma_of_share
from sdtt_jax.diffusion.decoders.filling import read_selected
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import masked_nll
from sdtt_jax.keys import numbered_keys, purpose_key
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.categorical import draw
from sdtt_jax.ops.rows import Chunks
from sdtt_jax.typing import Key, Logits

# A cubic is fitted through these, to find the best temperature between them.
TEMPERATURES = (0.5, 0.65, 0.8, 0.9, 1.0, 1.15)
CHUNKS = Chunks(scope="temperature_rows", parts=4)


def best_temperatures(
    model: Model, tokens: np.ndarray, counts: tuple[int, ...], seed: int, batch_size: int
) -> tuple[float, ...]:
    """The temperature of each call at which the sum of both divergences is least.

    Args:
      model: the denoiser, whose positions all see each other.
      tokens: `[texts, length]` int32, no MASK.
      counts: tokens of each call, together `length`.
      seed: of orders and draws.
      batch_size: texts at once.
    """
    ends = np.cumsum(counts)
    several = [call for call, count in enumerate(counts) if count > 1]
    found = [1.0] * len(counts)
    if several:
        sums = two_sided(
            model, tokens, [(ends[c] - counts[c], ends[c]) for c in several], seed, batch_size
        )
        for call, curve in zip(several, sums, strict=True):
            found[call] = lowest(curve)
    return tuple(found)


def two_sided(
    model: Model, tokens: np.ndarray, calls: list[tuple[int, int]], seed: int, batch_size: int
) -> np.ndarray:
    """The sum of both divergences, up to a constant: `[calls, TEMPERATURES]` float64, nats.

    Args:
      model, tokens, seed, batch_size: as for `best_temperatures`.
      calls: numbers of shown tokens before and after each.
    """
    key, texts = purpose_key(seed, "evaluate.temperatures"), len(tokens)
    start, stop = np.repeat(np.array(calls, np.int32), texts, axis=0).T
    # How many of the call's tokens are shown, spread evenly over its texts.
    share = np.random.default_rng(seed).permuted(
        np.tile((np.arange(texts) + 0.5) / texts, (len(calls), 1)), axis=1
    )
    seen = start + np.floor(share.ravel() * (stop - start)).astype(np.int32)
    rows = np.tile(tokens, (len(calls), 1)), start, stop, seen
    function = functools.partial(_two_sided, model.diffusion, key)
    sums = map_batches(function, model.params, rows, batch_size)
    return np.asarray(sums.reshape(len(calls), texts, -1).mean(axis=1))


def lowest(curve: np.ndarray) -> float:
    """The temperature at which a cubic in its logarithm, fitted to a curve `[TEMPERATURES]`, is lowest."""
    cubic = np.polyfit(np.log(TEMPERATURES), curve, 3)
    between = np.linspace(np.log(TEMPERATURES[0]), np.log(TEMPERATURES[-1]), 200)
    return float(np.exp(between[np.polyval(cubic, between).argmin()]))


@functools.partial(jax.jit, static_argnames="diffusion")
def _two_sided(
    diffusion: MaskedDiffusion, key: jax.Array, params: Any, index: jax.Array, rows: Any
) -> jax.Array:
    """Both divergences together for each text: `[texts, temperatures]`."""
    x0, start, stop, seen = rows
    key_order, key_token = jax.random.split(jax.random.fold_in(key, index))
    uniform = jax.random.uniform(key_order, x0.shape, jnp.float32)
    rank = ranks(uniform)
    due = (rank >= start[:, None]) & (rank < stop[:, None])
    scales = jnp.array(TEMPERATURES, jnp.float32)

    def masked_at(x: jax.Array, shown: jax.Array) -> tuple[jax.Array, jax.Array]:
        masked = rank >= shown[:, None]
        share = masked.mean(axis=-1, dtype=jnp.float32)
        return jnp.where(masked, diffusion.mask_id, x), sigma_of_share(diffusion.schedule, share)

    def read(key: Key, logits: Logits, places: jax.Array, _: None) -> Any:
        keys, log_p = numbered_keys(key, places), jax.nn.log_softmax(logits)

        def at(scale: jax.Array) -> Any:
            log_q = jax.nn.log_softmax(logits / scale)
            both = ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(axis=-1)
            # All temperatures share one key, so that they alone make the draws differ.
            drawn = jax.vmap(draw)(keys, log_q)
            return drawn, both, jnp.take_along_axis(log_p, drawn[:, None], axis=1)[:, 0]

        return jax.tree.map(lambda leaf: leaf.T, jax.lax.map(at, scales))

    x_t, sigma = masked_at(x0, start)
    hidden = diffusion.hidden(params, x_t, sigma)
    drawn, both, alone = read_selected(
        diffusion, params, hidden, due, read, key_token, chunks=CHUNKS
    )
    left = due & (rank >= seen[:, None])

    def contradiction(written: tuple[jax.Array, jax.Array]) -> jax.Array:
        drawn, alone = written
        y = jnp.where(due, drawn, x0)
        more = alone + masked_nll(diffusion, params, y, *masked_at(y, seen))
        mean = jnp.where(left, more, 0.0).sum(axis=-1) / left.sum(axis=-1, dtype=jnp.float32)
        return mean * (stop - start)

    written = jnp.moveaxis(drawn, -1, 0), jnp.moveaxis(alone, -1, 0)
    return both.sum(axis=1) + jax.lax.map(contradiction, written).T
