"""Energy: the denoiser draws whole candidate texts, and a causal model helps to pick one of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdtt_jax.config import whole, within
from sdtt_jax.diffusion.calls import calls_of_share
from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene
from sdtt_jax.diffusion.decoders.filling import read_selected, reveal_due
from sdtt_jax.keys import numbered_keys
from sdtt_jax.ops.categorical import draw, filter_logits
from sdtt_jax.ops.sequences import preceded
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import Key, Logits, Tokens


@dataclasses.dataclass(frozen=True)
class Energy:
    """Candidates and when they are compared (EDLM, arXiv 2410.21357); reveals as "first-hitting" does."""

    candidates: int = 4  # texts of which one is picked, with probability proportional to `exp(-E)`
    # Share of the steps, from the first, that compare candidates, at least one step; the others draw plainly,
    # and 0 is no comparison at all.
    window: float = 1.0

    def __post_init__(self) -> None:
        whole(1, self, "candidates")
        within("[0, 1]", self, "window")

    def comparisons(self, num_steps: int) -> int:
        """The number of steps that compare candidates."""
        return max(calls_of_share(self.window, num_steps), int(self.window > 0))


def energy_step(
    options: Energy, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: candidates for all that is masked in one call, their energies in another.

    `E(x_0) = -log p_causal(x_0) + log p_denoiser(x_0 | x_t)` (section 4.1 of the paper; their code has the
    opposite sign), so that with many candidates the pick has the causal model's law given what is known.
    """

    def compare(x: Tokens) -> tuple[Tokens, jax.Array]:
        key_tokens, key_pick = jax.random.split(key)
        texts, own = _candidates(options.candidates, scene, key_tokens, x, now.sigma(scene))
        picked = draw(key_pick, _causal_log_prob(scene, texts) - own)
        chosen = jnp.take_along_axis(texts, picked[:, None, None], axis=1)[:, 0]
        return vary_alike(jnp.where(now.due, chosen, x), jnp.int32(2))

    plainly = functools.partial(reveal_due, scene, key, now)
    within_window = now.call < options.comparisons(scene.num_steps)
    x, calls = jax.lax.cond(now.due.any() & within_window, compare, plainly, now.x)
    return x, calls, now.memory


def _candidates(
    count: int, scene: Scene, key: Key, x: Tokens, sigma: jax.Array
) -> tuple[Tokens, jax.Array]:
    """Texts with MASK filled in, `[batch, count, length]`, and their log-probabilities, `[batch, count]`."""
    diffusion, shape = scene.diffusion, (*x.shape, count)

    def write(key: Key, logits: Logits, places: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        logits = filter_logits(logits, scene.filters)
        keys = numbered_keys(key, places)
        several = jnp.broadcast_to(logits[:, None], (len(logits), count, logits.shape[-1]))
        tokens = jax.vmap(draw)(keys, several)
        log_probs = jax.nn.log_softmax(logits)
        return tokens, jnp.take_along_axis(log_probs, tokens, axis=-1)

    hidden, masked = diffusion.hidden(scene.params, x, sigma), x == diffusion.mask_id
    rest = jnp.broadcast_to(x[..., None], shape), jnp.zeros(shape, jnp.float32)
    tokens, log_probs = read_selected(
        diffusion, scene.params, hidden, masked, write, key, rest, copies=count
    )
    return jnp.moveaxis(tokens, 2, 1), log_probs.sum(axis=1)


def _causal_log_prob(scene: Scene, texts: Tokens) -> jax.Array:
    """The helper's log-probability of whole texts `[batch, count, length]`: `[batch, count]`."""
    helper = scene.other
    assert helper.bos_id is not None
    flat = texts.reshape(-1, texts.shape[-1])
    hidden = helper.network.hidden(helper.params, preceded(flat, helper.bos_id))
    head = helper.network.head_params(helper.params)

    def total(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, tokens = rows
        logits = helper.network.logits(head, hidden)[:, : scene.diffusion.mask_id]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=-1).sum()

    # Text by text: the logits of all positions of all candidates at once would be the largest array.
    return jax.lax.map(total, (hidden, flat)).reshape(texts.shape[:2])
