"""A draft and its revision: tokens that the rest of the text makes improbable are drawn again."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import require, whole, within
from sdtt_jax.diffusion.decoders.base import (
    Memory,
    Now,
    Scene,
    first_hitting_plan,
    sigma_of_share,
    sigma_of_state,
)
from sdtt_jax.diffusion.decoders.filling import choice, reveal, reveal_due
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import Key, PerToken, Positions, Tokens


@dataclasses.dataclass(frozen=True)
class Refine:
    """How the last steps go over what the others have drafted (after COrAL, arXiv 2410.09675)."""

    # Refinement steps, each for the next window; the steps before them draft as "first-hitting" does.
    rounds: int = 2
    # Neighbouring positions that a step looks at. The first window begins after the prompt of every text, and
    # after the last position the windows begin there again.
    window: int = 8
    # A token is drawn again if its probability given all others is below this.
    threshold: float = 0.1

    def __post_init__(self) -> None:
        whole(1, self, "rounds", "window")
        within("[0, 1]", self, "threshold")


def draft_plan(
    options: Refine, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: everything is revealed before the refinement begins."""
    drafts = len(times) - options.rounds
    call, sigmas = first_hitting_plan(options, share, masked, schedule, times[:drafts])
    call = jnp.where(masked, call, len(times) - 1)
    return call, jnp.pad(sigmas, ((0, options.rounds), (0, 0)))


def check_rounds(options: Refine, network: Any, num_steps: int, length: int) -> None:
    """`Decoder.check`: a step is left for the draft, and a window is no longer than the text."""
    del network
    require(
        options.rounds < num_steps,
        f"mode=refine: rounds={options.rounds} leaves no step of num_steps={num_steps} for the draft.",
    )
    require(
        options.window <= length,
        f"mode=refine: window={options.window} is longer than the {length} tokens of a text; take a "
        "shorter one.",
    )


def refine_step(
    options: Refine, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: one call for the draft, or two that check a window and draw some of its tokens again.

    The first of the two shows the network the text once for each position of the window, as one batch. The
    windows begin after what is given at the start of every text, and none is looked at that is given whole.
    """
    diffusion, drafts = scene.diffusion, scene.num_steps - options.rounds
    length, first = now.x.shape[1], jnp.argmax(now.free.any(axis=0)).astype(jnp.int32)
    start = (now.call - drafts) * options.window
    places = first + (start + jnp.arange(options.window, dtype=jnp.int32)) % (length - first)
    given = ~now.free[:, places].any()

    def refine(x: Tokens) -> tuple[Tokens, jax.Array]:
        left_out = jnp.where(
            jnp.arange(length, dtype=jnp.int32) == places[:, None], diffusion.mask_id, x[:, None]
        )
        single = sigma_of_share(diffusion.schedule, jnp.float32(1 / length))
        rows = left_out.reshape(-1, length)
        hidden = diffusion.hidden(scene.params, rows, jnp.broadcast_to(single, len(rows)))
        hidden = hidden.reshape(*left_out.shape, -1)[:, jnp.arange(len(places)), places]
        head = diffusion.denoiser.head_params(scene.params)
        logits = diffusion.denoiser.logits(head, hidden)[..., : diffusion.mask_id]
        probs = jax.nn.softmax(logits)
        own = jnp.take_along_axis(probs, x[:, places][..., None], axis=-1)[..., 0]
        doubted = jnp.zeros(x.shape, bool).at[:, places].set(own < options.threshold) & now.free
        x = jnp.where(doubted, diffusion.mask_id, x)
        choose = choice(scene.filters)
        sigma = sigma_of_state(diffusion, x)
        x, calls = reveal(diffusion, scene.params, x, doubted, sigma, choose, key)
        return x, calls + 1

    draft = functools.partial(reveal_due, scene, key, now)
    what = jnp.where(now.call < drafts, 0, jnp.where(given, 2, 1))
    x, calls = jax.lax.switch(what, (draft, refine, lambda x: vary_alike(x, jnp.int32(0))), now.x)
    return x, calls, now.memory
