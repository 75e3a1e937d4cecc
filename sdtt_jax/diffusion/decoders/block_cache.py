"""What `blocks` remembers of the blocks that are not being written: their keys and values.

* "prefix": those of finished blocks, computed when only the blocks before them were visible; what follows is
  not seen. It is exact for block-causal attention (`networks.blocks.BlockCausal`, arXiv 2503.09573) and an
  approximation for a network that sees everything.
* "dual": those of all positions, from the block's first call, which computes all of them (Fast-dLLM,
  arXiv 2505.22618, section 3.2). It is an approximation except in the first call of each block.
* "none": nothing is remembered; each call computes all positions. It is the baseline for the others.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene
from sdtt_jax.typing import Hidden, Tokens

CACHES = ("prefix", "dual", "none")


def empty_memory(cache: str, scene: Scene, x: Tokens) -> Memory:
    """Zeros for all keys and values, `[layers, batch, heads, length, kv]`; None without a cache."""
    if cache == "none":
        return None
    network: Any = scene.diffusion.denoiser
    _, shapes = jax.eval_shape(network.decode, scene.params, x)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def remember(scene: Scene, now: Now, start: jax.Array, size: int) -> Memory:
    """The memory with the keys and values of a finished block, which saw the blocks before it.

    Args:
      scene, now: the models, and the generation with its memory.
      start: `[]` int32, the block's first position.
      size: positions of a block.
    """
    _, new = _decode(scene, now, start, size, now.memory, jnp.arange(now.x.shape[1]) < start)

    def write(old: jax.Array, fresh: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), start, axis=3)

    return jax.tree.map(write, now.memory, new)


def read(
    cache: str, scene: Scene, now: Now, start: jax.Array, size: int, first: jax.Array
) -> tuple[Hidden, Memory]:
    """Hidden states of a block, `[batch, size, d]`, from one network call, and what is remembered afterwards.

    Args:
      cache: one of `CACHES`.
      scene, now, start, size: as for `remember`.
      first: `[]` bool, whether this is the block's first call.
    """
    network: Any = scene.diffusion.denoiser
    places = jnp.arange(now.x.shape[1])

    def cut(hidden: Hidden) -> Hidden:
        return jax.lax.dynamic_slice_in_dim(hidden, start, size, axis=1)

    if cache == "none":
        return cut(scene.diffusion.hidden(scene.params, now.x, now.sigma(scene))), None
    if cache == "prefix":
        return _decode(scene, now, start, size, now.memory, places < start)[0], now.memory

    def whole_text(_: Memory) -> tuple[Hidden, Memory]:
        hidden, memory = network.decode(scene.params, now.x)
        return cut(hidden), memory

    def block_alone(memory: Memory) -> tuple[Hidden, Memory]:
        outside = (places < start) | (places >= start + size)
        return _decode(scene, now, start, size, memory, outside)[0], memory

    found: tuple[Hidden, Memory] = jax.lax.cond(first, whole_text, block_alone, now.memory)
    return found


def _decode(
    scene: Scene, now: Now, start: jax.Array, size: int, memory: Memory, seen: jax.Array
) -> tuple[Hidden, Memory]:
    """Hidden states of a block, and its keys and values; of the memory it sees what is `seen`."""
    network: Any = scene.diffusion.denoiser
    block = jax.lax.dynamic_slice_in_dim(now.x, start, size, axis=1)
    visible = jnp.pad(seen, (0, size), constant_values=True)
    visible = jnp.broadcast_to(visible, (size, len(visible)))
    decoded: tuple[Hidden, Memory] = network.decode(scene.params, block, memory, start, visible)
    return decoded
