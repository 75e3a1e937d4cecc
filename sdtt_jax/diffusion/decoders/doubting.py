"""ReMDM whose chances of masking again are weighted by doubt (arXiv 2503.00307, confidence schedule).

It prefers the tokens that the network was least sure of when it wrote them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.calls import still_masked
from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene
from sdtt_jax.diffusion.decoders.filling import choice, read_selected
from sdtt_jax.diffusion.decoders.remasking import Remdm, network_sigma, remask_chances
from sdtt_jax.typing import Key, Logits, PerToken, Positions, Tokens


def nothing_written(options: Remdm, scene: Scene, x: Tokens) -> Memory:
    """`Decoder.begin`: the probability that each token had when it was written, `[batch, length]` float32."""
    del options, scene
    return jnp.zeros(x.shape, jnp.float32)


def doubt(confidence: PerToken, shown: Positions, sigma: jax.Array) -> PerToken:
    """Weights for the chance of being masked again: proportional to `exp(-confidence)`, with mean one.

    The paper's weights sum to one over a text and leave the chance of revealing as it is, so the share of
    masked tokens drifts from the schedule. With a mean of one over the shown tokens, as many are masked again
    on average as without weights, and ReMDM's theorem holds for that share. Where a chance would exceed one,
    all weights of the text are moved towards one until none does.

    Args:
      shown: `[batch, length]` bool, positions that may be masked again.
      sigma: `[]` float32, the chance without weights.
    """
    weight = jnp.where(shown, jnp.exp(-confidence), 0.0)
    count = jnp.maximum(shown.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)
    excess = weight * count / jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30) - 1
    largest = jnp.maximum(excess.max(axis=-1, keepdims=True), 1e-30)
    room = 1 / jnp.maximum(sigma, 1e-30) - 1
    return jnp.where(shown, 1 + excess * jnp.minimum(1.0, room / largest), 0.0)


def doubting_step(
    options: Remdm, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: a reverse step that also masks again; no call where nothing is revealed."""
    diffusion = scene.diffusion
    time, still = scene.times[now.call], still_masked(diffusion.schedule, scene.times)
    masked, (key_position, key_token) = now.x == diffusion.mask_id, jax.random.split(key)
    reveal, sigma = remask_chances(options, still[now.call], still[now.call + 1])
    uniform = jax.random.uniform(key_position, now.x.shape, jnp.float32)
    selected, shown = masked & (uniform < reveal), now.free & ~masked
    again = shown & (uniform < sigma * doubt(now.memory, shown, sigma))
    choose = choice(scene.filters)

    def write(key: Key, logits: Logits, *others: Any) -> tuple[jax.Array, jax.Array]:
        tokens = choose(key, logits, *others)
        return tokens, jnp.take_along_axis(jax.nn.softmax(logits), tokens[:, None], axis=-1)[:, 0]

    def call(x: Tokens, confidence: PerToken) -> tuple[Tokens, PerToken]:
        noise = jnp.broadcast_to(network_sigma(options, diffusion.schedule, time), len(x))
        hidden, rest = diffusion.hidden(scene.params, x, noise), (x, confidence)
        return read_selected(diffusion, scene.params, hidden, selected, write, key_token, rest)

    needed = selected.any()
    x, confidence = jax.lax.cond(needed, call, lambda *same: same, now.x, now.memory)
    return jnp.where(again, diffusion.mask_id, x), needed.astype(jnp.int32), confidence
