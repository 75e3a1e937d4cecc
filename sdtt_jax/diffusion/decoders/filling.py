"""Tokens for some positions of partly masked sequences: from one network call, or from hidden states.

Each token is drawn at random, determined by given noise, or the most probable one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.decoders.base import Now, Pick, Scene
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.keys import numbered_keys
from sdtt_jax.ops.categorical import Filters, divided, draw, filter_logits
from sdtt_jax.ops.noise import Noise, noisy_argmax
from sdtt_jax.ops.rows import Chunks, map_selected
from sdtt_jax.typing import Hidden, Key, Logits, Params, PerSequence, Positions, Tokens, Tree

# (key, logits [n, mask_id], places [n], noise of [n]) -> tokens [n] int32; a place is sequence * length +
# position.
Choice = Callable[[Key, Logits, jax.Array, Any], jax.Array]

# Of n positions a step of a generation reveals about n / num_steps. A chunk of a twelfth nearly always holds
# what one of 16 steps reveals; smaller chunks read the head's kernel twice (1024 positions, 50k tokens, two
# CPU cores: 64 rows take 47 ms at once and 100 ms in halves).
CHUNKS = Chunks(scope="reveal_rows", parts=12)


def reveal(
    diffusion: MaskedDiffusion,
    params: Params,
    x: Tokens,
    selected: Positions,
    sigma: PerSequence,
    choose: Choice,
    key: Key | None = None,
    noise: Tree = None,
    pick: Pick | None = None,
) -> tuple[Tokens, jax.Array]:
    """`fill` after one network call at `sigma`, and the number of calls: 0 where nothing is selected.

    Where all texts are MASK throughout, as at the first of a generation's calls unless text is given, one
    position of each is computed: an eighth of the time of 8 calls is saved.
    """

    def one(x: Tokens) -> Hidden:
        hidden = diffusion.hidden(params, x[:, :1], sigma)
        return jnp.broadcast_to(hidden, (*x.shape, hidden.shape[-1]))

    def all_of_them(x: Tokens) -> Hidden:
        return diffusion.hidden(params, x, sigma, noise)

    def call(x: Tokens) -> Tokens:
        if diffusion.position_free:
            hidden = jax.lax.cond((x == diffusion.mask_id).all(), one, all_of_them, x)
        else:
            hidden = all_of_them(x)
        return fill(diffusion, params, x, hidden, selected, choose, key, noise, pick)

    needed = selected.any()
    return jax.lax.cond(needed, call, lambda x: x, x), needed.astype(jnp.int32)


def reveal_due(scene: Scene, key: Key, now: Now, x: Tokens) -> tuple[Tokens, jax.Array]:
    """`x` with tokens drawn at the positions that the plan reveals now, and the number of network calls."""
    choose = choice(scene.filters)
    return reveal(scene.diffusion, scene.params, x, now.due, now.sigma(scene), choose, key)


def fill(
    diffusion: MaskedDiffusion,
    params: Params,
    x: Tokens,
    hidden: Hidden,
    selected: Positions,
    choose: Choice,
    key: Key | None,
    noise: Tree = None,
    pick: Pick | None = None,
) -> Tokens:
    """`x` with the tokens of `choose` at the selected positions, or at those of them that `pick` accepts."""
    read = functools.partial(read_selected, diffusion, params, hidden, selected)
    if pick is None:
        return read(choose, key, x, noise=noise)

    def scored(key: Key, logits: Logits, places: jax.Array, noise: Any) -> tuple[Any, Any]:
        return choose(key, logits, places, noise), pick.score(jax.nn.log_softmax(logits))

    no_score = jnp.zeros((*x.shape, *pick.columns), jnp.float32)
    tokens, score = read(scored, key, (x, no_score), noise=noise)
    return jnp.where(pick.accept(score, selected), tokens, x)


def read_selected(
    diffusion: MaskedDiffusion,
    params: Params,
    hidden: Hidden,
    selected: Positions,
    function: Callable[..., Tree],
    key: Key | None,
    fill: Tree | None = None,
    *,
    noise: Tree = None,
    copies: int = 1,
    chunks: Chunks = CHUNKS,
) -> Any:
    """What `function` makes of the logits at the selected positions, and `fill` elsewhere.

    The head runs only at the selected positions. MASK and the padding come after the vocabulary and are
    impossible: no noise is drawn for them. At 30 tokens padded to 128 that takes 7 ms instead of 24 for a
    batch of 64 × 64 on two CPU cores. The arguments are those of `fill` (hence so many), but for these:

    Args:
      function: of the arguments of a `Choice`; gives a tree of `[n, …]`.
      fill: the same tree of `[batch, length, …]`; None is zeros.
      copies: how many arrays as wide as the logits `function` holds at once.
      chunks: how the selected positions are cut.
    """
    denoiser = diffusion.denoiser

    def of_rows(rows: tuple[jax.Array, jax.Array, Any], shared: Any) -> Tree:
        (hidden, places, noise), (head, key) = rows, shared
        logits = denoiser.logits(head, hidden)[:, : denoiser.mask_id]
        return function(key, logits, places, noise)

    places = jnp.arange(selected.size, dtype=jnp.int32).reshape(selected.shape)
    rows, shared = (hidden, places, noise), (denoiser.head_params(params), key)
    columns = copies * denoiser.padded_vocab
    return map_selected(of_rows, selected, rows, shared, columns, chunks, fill=fill)


def choice(filters: Filters, noise: Tree = None, *, sees_noise: bool = False) -> Choice:
    """How the steps of a generation take their tokens.

    They are drawn with fresh noise at each call, unless the generation is a function of `noise` that the
    network does not see.
    """
    if filters.greedy:
        return most_probable
    if noise is None or sees_noise:
        return drawn(filters)

    def choose(key: Key, logits: Logits, places: jax.Array, noise: Noise) -> jax.Array:
        del key, places
        return noisy_argmax(filter_logits(logits, filters), noise)

    return choose


def at_temperature(choose: Choice, temperature: jax.Array) -> Choice:
    """`choose` from logits that are divided by `temperature: [] float32`."""

    def scaled(key: Key, logits: Logits, places: jax.Array, noise: Any) -> jax.Array:
        return choose(key, divided(logits, temperature), places, noise)

    return scaled


def drawn(filters: Filters) -> Choice:
    """Draws from the filtered distribution, each position with the key of its place in the batch.

    Therefore neither the size of the chunks nor the number of devices changes what is drawn.
    """

    def choose(key: Key, logits: Logits, places: jax.Array, noise: Any) -> jax.Array:
        del noise
        keys = numbered_keys(key, places)
        return jax.vmap(draw)(keys, filter_logits(logits, filters))

    return choose


def greedy_at_last(choose: Choice, last: jax.Array) -> Choice:
    """`choose`, or `most_probable` if `last: [] bool` is True, in a program that holds the network once."""

    def either(key: Key, logits: Logits, places: jax.Array, noise: Any) -> jax.Array:
        return jax.lax.cond(last, most_probable, choose, key, logits, places, noise)

    return either


def most_probable(key: Key | None, logits: Logits, places: jax.Array, noise: Any) -> jax.Array:
    """The most probable token of each position; the key is not used."""
    del key, places, noise
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
