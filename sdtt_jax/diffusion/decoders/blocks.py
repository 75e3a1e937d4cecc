"""Blocks from left to right, each written in a few calls, with a cache of keys and values for the rest.

Within a block the positions come in a random order, or in that of the network's confidence (LLaDA, arXiv
2502.09992, section 2.4); with a threshold, all positions above it come at once (Fast-dLLM, arXiv 2505.22618,
section 3.3).

A call computes only the positions of one block, and attends to the others through a `block_cache`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import one_of, require, whole
from sdtt_jax.diffusion.calls import even_calls
from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene, grid_sigmas, no_plan
from sdtt_jax.diffusion.decoders.block_cache import CACHES, block_states, empty_memory, update_cache
from sdtt_jax.diffusion.decoders.confident import SCORES, Confidence, block_pick
from sdtt_jax.diffusion.decoders.filling import choice, fill
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.typing import Key, PerToken, Positions, Tokens

RANDOM, STARTS = "random", ("text", "prompt")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Size of blocks, order of positions within a block, and the cache of the other blocks."""

    length: int = 32  # positions of a block
    cache: str = "prefix"  # one of `CACHES`
    # Which positions of a block come first: "random", or those with the highest score, as in `Confidence`.
    score: str = RANDOM
    # threshold, order_temperature: as in `Confidence`; the last call of a block reveals all that is left.
    threshold: float = 0.0
    order_temperature: float = 0.0
    # Where the first block begins: at the first position, or after the prompt of every text, as in LLaDA.
    start: str = "text"

    def __post_init__(self) -> None:
        whole(1, self, "length")
        one_of(self, cache=CACHES, score=(RANDOM, *SCORES), start=STARTS)
        require(
            self.score != RANDOM or self.threshold == self.order_temperature == 0,
            "mode=blocks: threshold and order_temperature need a score, such as score=probability.",
        )
        if self.score != RANDOM:
            self.confidence()

    def confidence(self) -> Confidence:
        """The options of the decoder that picks within a block, if there is a score."""
        return Confidence(self.score, self.threshold, self.order_temperature)


def block_plan(
    options: Blocks, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: a random order within each block, spread evenly over that block's calls.

    With a score there is no plan: positions are chosen at each call.
    """
    (batch, length), num_steps = masked.shape, len(times) - 1
    if options.score != RANDOM:
        return no_plan(options, share, masked, schedule, times)
    count, begin = length // options.length, first_block(options, masked)
    rows = (batch * count, options.length)
    # From here to the end of this function, the blocks begin at position 0; the prompt follows the text.
    share, fresh = (jnp.roll(array, -begin, axis=1).reshape(rows) for array in (share, masked))
    call, _ = even_calls(share, fresh, num_steps // count)
    block = jnp.arange(length, dtype=jnp.int32) // options.length
    call = jnp.roll(call.reshape(masked.shape) + block * (num_steps // count), begin, axis=1)
    return jnp.where(masked, call, num_steps), grid_sigmas(schedule, times, masked)


def first_block(options: Blocks, masked: Positions) -> jax.Array:
    """Where the first block begins, `[]` int32, given what was masked at the start."""
    first = jnp.argmax(masked.any(axis=0)) if options.start == "prompt" else 0
    return jnp.int32(first)


def check_blocks(options: Blocks, network: Any, num_steps: int, length: int) -> None:
    """`Decoder.check`: the blocks fill a text, each gets a call, and the network has a cache."""
    size = options.length
    require(
        length % size == 0, f"blocks of {size} do not divide {length} tokens; choose a divisor."
    )
    count = length // size
    require(
        num_steps % count == 0,
        f"num_steps={num_steps} must be a multiple of the {count} blocks; try "
        f"{max(1, num_steps // count) * count}.",
    )
    require(
        options.start == "text" or not hasattr(network, "block"),
        "mode=blocks:start=prompt: this network attends within blocks of its own; take start=text.",
    )
    if options.cache == "none":
        return
    fit = hasattr(network, "config") and hasattr(network, "decode")
    unfit = fit and any(getattr(network.config, f, False) for f in ("time_conditioned", "causal"))
    require(
        fit and not unfit and getattr(network, "noise_kind", None) is None,
        f"mode=blocks:cache={options.cache} needs a network with a cache that attends in both directions "
        "and neither sees time or noise nor exits early; take cache=none.",
    )


def no_blocks_yet(options: Blocks, scene: Scene, x: Tokens) -> Memory:
    """`Decoder.begin`: an empty cache."""
    return empty_memory(options.cache, scene, x)


def write_block(
    options: Blocks, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: one call for one block, unless it has nothing to reveal there."""
    size, length = options.length, now.x.shape[1]
    each = scene.num_steps // (length // size)
    origin = first_block(options, now.free)
    start, first = origin + now.call // each * size, now.call % each == 0
    before = start - size  # start of the block finished last; for the first block, it is not read
    fresh = first & (start > 0) & (start < length) & (options.cache == "prefix")
    # The last block may be shorter; it is then read with the end of the one before it.
    start = jnp.minimum(start, length - size)

    def part(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)

    due, pick = part(now.due), None
    if options.score != RANDOM:
        key, key_order = jax.random.split(key)
        due = part(now.free & (now.x == scene.diffusion.mask_id))
        pick = block_pick(options.confidence(), key_order, each - now.call % each)
    if options.cache == "prefix":
        prompt = origin if options.start == "prompt" else None
        now = now._replace(memory=update_cache(scene, now, fresh, before, prompt, size))
    choose = choice(scene.filters)

    def call(now: Now) -> tuple[Tokens, Memory]:
        hidden, memory = block_states(options.cache, scene, now, start, size, first)
        block = fill(
            scene.diffusion, scene.params, part(now.x), hidden, due, choose, key, pick=pick
        )
        return jax.lax.dynamic_update_slice_in_dim(now.x, block, start, axis=1), memory

    needed = due.any()
    x, memory = jax.lax.cond(needed, call, lambda now: (now.x, now.memory), now)
    return x, fresh.astype(jnp.int32) + needed.astype(jnp.int32), memory
