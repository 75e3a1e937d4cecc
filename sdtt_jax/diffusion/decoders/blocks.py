"""Blocks from left to right, each written in a few calls, with a cache of keys and values for the rest.

A call computes only the positions of one block. It sees remembered keys and values of the others:

* "prefix": of finished blocks, computed when only the blocks before them were visible; what follows is not
  seen. It is exact for block-causal attention (`networks.blocks.BlockCausal`, arXiv 2503.09573) and an
  approximation for a network that sees everything.
* "dual": of all positions, from the block's first call, which computes all of them (Fast-dLLM,
  arXiv 2505.22618, section 3.2). It is an approximation except in the first call of each block.
* "none": nothing is remembered; each call computes all positions. It is the baseline for the others.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import one_of, require, whole
from sdtt_jax.diffusion.calls import even_calls
from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene, grid_sigmas
from sdtt_jax.diffusion.decoders.filling import choice, fill
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.typing import Hidden, Key, PerToken, Positions, Tokens

CACHES = ("prefix", "dual", "none")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a text is cut into blocks, and what is remembered of the blocks that are not being written."""

    length: int = 32  # positions of a block
    cache: str = "prefix"  # one of `CACHES`

    def __post_init__(self) -> None:
        whole(1, self, "length")
        one_of(self, cache=CACHES)


def block_plan(
    options: Blocks, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: a random order within each block, spread evenly over that block's calls."""
    (batch, length), num_steps = masked.shape, len(times) - 1
    count = length // options.length
    rows = (batch * count, options.length)
    call, _ = even_calls(share.reshape(rows), masked.reshape(rows), num_steps // count)
    block = jnp.arange(length) // options.length
    call = call.reshape(masked.shape) + block * (num_steps // count)
    return jnp.where(masked, call, num_steps), grid_sigmas(schedule, times, masked)


def check_blocks(options: Blocks, network: Any, num_steps: int, length: int) -> None:
    """`Decoder.check`: blocks that fill a text, calls for all of them, and a network with a cache."""
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
    if options.cache == "none":
        return
    unfit = ("time_conditioned", "shift", "causal")
    fit = hasattr(network, "decode") and not any(getattr(network.config, f, False) for f in unfit)
    require(
        fit and getattr(network, "noise_kind", None) is None,
        f"mode=blocks:cache={options.cache} needs a network with a cache that attends in both directions, "
        "does not predict the next token, and sees neither time nor noise; take cache=none.",
    )


def empty_memory(options: Blocks, scene: Scene, x: Tokens) -> Memory:
    """`Decoder.begin`: keys and values for all positions, `[layers, batch, heads, length, kv]` of zeros."""
    if options.cache == "none":
        return None
    network: Any = scene.diffusion.denoiser
    _, shapes = jax.eval_shape(network.decode, scene.params, x)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def write_block(
    options: Blocks, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: one call for one block."""
    size, length = options.length, now.x.shape[1]
    each = scene.num_steps // (length // size)
    start, first = now.call // each * size, now.call % each == 0

    def part(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)

    hidden, calls, memory = _read(options, scene, now, start, first)
    choose = choice(scene.filters, None, sees_noise=False)
    block = fill(scene.diffusion, scene.params, part(now.x), hidden, part(now.due), choose, key)
    return jax.lax.dynamic_update_slice_in_dim(now.x, block, start, axis=1), calls, memory


def _read(
    options: Blocks, scene: Scene, now: Now, start: jax.Array, first: jax.Array
) -> tuple[Hidden, jax.Array, Memory]:
    """Hidden states of the block, the number of calls that they took, and what is remembered afterwards."""
    network: Any = scene.diffusion.denoiser
    size, places, once = options.length, jnp.arange(now.x.shape[1]), jnp.int32(1)

    def cut(x: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, at, size, axis=1)

    def decode(at: jax.Array, memory: Memory, seen: jax.Array) -> tuple[Hidden, Memory]:
        visible = jnp.pad(seen, (0, size), constant_values=True)
        visible = jnp.broadcast_to(visible, (size, len(visible)))
        decoded: tuple[Hidden, Memory] = network.decode(
            scene.params, cut(now.x, at), memory, at, visible
        )
        return decoded

    if options.cache == "none":
        return cut(scene.diffusion.hidden(scene.params, now.x, now.sigma(scene)), start), once, None
    if options.cache == "dual":

        def whole_text(_: Memory) -> tuple[Hidden, Memory]:
            hidden, memory = network.decode(scene.params, now.x)
            return cut(hidden, start), memory

        def block_alone(memory: Memory) -> tuple[Hidden, Memory]:
            outside = (places < start) | (places >= start + size)
            return decode(start, memory, outside)[0], memory

        hidden, memory = jax.lax.cond(first, whole_text, block_alone, now.memory)
        return hidden, once, memory

    def remember(memory: Memory) -> Memory:
        at = start - size
        _, new = decode(at, memory, places < at)

        def write(old: jax.Array, fresh: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), at, axis=3)

        return jax.tree.map(write, memory, new)

    finished = first & (start > 0)
    memory = jax.lax.cond(finished, remember, lambda memory: memory, now.memory)
    return decode(start, memory, places < start)[0], once + finished, memory
