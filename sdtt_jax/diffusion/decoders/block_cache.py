"""The cache of `blocks`: keys and values of the blocks that are not being written.

* "prefix": those of finished blocks, which attended only to the blocks before them; nothing attends to what
  follows. It is exact for block-causal attention (`networks.blocks.BlockCausal`, arXiv 2503.09573) and an
  approximation for a network that attends to everything.
* "dual": those of all positions, from the block's first call, which computes all of them (Fast-dLLM,
  arXiv 2505.22618, section 3.2). It is an approximation except in the first call of each block.
* "none": no cache; each call computes all positions. It is the baseline for the others.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene
from sdtt_jax.ops.sequences import predicted_before
from sdtt_jax.typing import Hidden, Tokens

CACHES = ("prefix", "dual", "none")


def empty_memory(cache: str, scene: Scene, x: Tokens) -> Memory:
    """Zeros for all keys and values, `[layers, batch, heads, length, kv]`; None without a cache."""
    if cache == "none":
        return None
    network: Any = scene.diffusion.denoiser
    _, shapes = jax.eval_shape(network.decode, scene.params, x)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def update_cache(
    scene: Scene, now: Now, fresh: jax.Array, start: jax.Array, prompt: jax.Array | None, size: int
) -> Memory:
    """The cache; if `fresh`, updated with the keys and values of the block that was finished last.

    Such a block attends to itself and to the blocks before it. Before the first block, the prompt is added
    instead, which attends only to itself.

    Args:
      scene, now: the models, and the generation with its memory.
      fresh: `[]` bool.
      start: `[]` int32, the first position of the block (or prompt) that was finished last.
      prompt: `[]` int32, number of positions before the first block; None: it begins the text.
      size: positions of a block.
    """
    length = now.x.shape[1]
    places = jnp.arange(length, dtype=jnp.int32)

    def block(memory: Memory) -> Memory:
        x = jax.lax.dynamic_slice_in_dim(now.x, start, size, axis=1)
        _, new = _decode(scene, x, memory, start, places < start, jnp.ones((size, size), bool))

        def write(old: jax.Array, fresh: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), start, axis=3)

        return jax.tree.map(write, memory, new)

    def finished(memory: Memory) -> Memory:
        if prompt is None:
            return block(memory)
        # The positions after the prompt are computed too, and never read.
        own = jnp.broadcast_to(places < prompt, (length, length))

        def whole_prompt(memory: Memory) -> Memory:
            _, new = _decode(scene, now.x, memory, jnp.int32(0), places < 0, own)
            return jax.tree.map(lambda old, fresh: fresh.astype(old.dtype), memory, new)

        return jax.lax.cond(start < prompt, whole_prompt, block, memory)

    memory: Memory = jax.lax.cond(fresh, finished, lambda memory: memory, now.memory)
    return memory


def block_states(
    cache: str, scene: Scene, now: Now, start: jax.Array, size: int, first: jax.Array
) -> tuple[Hidden, Memory]:
    """Hidden states of a block, `[batch, size, d]`, from one network call, and the cache after it.

    A network that predicts the next token predicts a block's first token at the position before the block,
    which is then computed too. With the prefix cache that position does not attend to the block, just as when
    its own block was written.

    Args:
      cache: one of `CACHES`.
      scene, now, start, size: as for `update_cache`.
      first: `[]` bool, whether this is the block's first call.
    """
    if cache == "none":
        # The only cache for a network of which no more is known than the names of `DenoiserLike`.
        hidden = scene.diffusion.hidden(scene.params, now.x, now.sigma(scene))
        return jax.lax.dynamic_slice_in_dim(hidden, start, size, axis=1), None
    network: Any = scene.diffusion.denoiser
    length, shift = now.x.shape[1], getattr(network.config, "shift", False)
    # The positions that are computed: the block, and the one before it if there is one and it is needed.
    begin = jnp.maximum(start - 1, 0) if shift else start
    width = min(size + 1, length) if shift else size
    places = jnp.arange(length, dtype=jnp.int32)

    def cut(x: jax.Array, at: jax.Array, count: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, at, count, axis=1)

    def block(memory: Memory, seen: jax.Array, own: jax.Array) -> Hidden:
        hidden, _ = _decode(scene, cut(now.x, begin, width), memory, begin, seen, own)
        if not shift:
            return hidden
        return jnp.where(start > 0, hidden[:, :size], predicted_before(hidden, None)[:, :size])

    everything = jnp.ones((width, width), bool)
    if cache == "prefix":
        row, column = jnp.indices((width, width))
        # For the first block, the window holds the position after the block instead.
        apart = jnp.where(start > 0, (row > 0) | (column == 0), (column < size) | (row == column))
        return block(now.memory, places < begin, apart if shift else everything), now.memory

    def whole_text(_: Memory) -> tuple[Hidden, Memory]:
        hidden, memory = network.decode(scene.params, now.x)
        hidden = predicted_before(hidden, None) if shift else hidden
        return cut(hidden, start, size), memory

    def block_alone(memory: Memory) -> tuple[Hidden, Memory]:
        return block(memory, (places < begin) | (places >= begin + width), everything), memory

    found: tuple[Hidden, Memory] = jax.lax.cond(first, whole_text, block_alone, now.memory)
    return found


def _decode(
    scene: Scene, x: Tokens, memory: Memory, start: jax.Array, seen: jax.Array, own: jax.Array
) -> tuple[Hidden, Memory]:
    """Hidden states, and keys and values, of the consecutive tokens `x: [batch, n]`.

    They attend to the positions `seen: [length]` of the memory, and to each other as in `own: [n, n]`.
    """
    network: Any = scene.diffusion.denoiser
    before = jnp.broadcast_to(seen, (len(own), len(seen)))
    visible = jnp.concatenate([before, own], axis=1)
    decoded: tuple[Hidden, Memory] = network.decode(scene.params, x, memory, start, visible)
    return decoded
