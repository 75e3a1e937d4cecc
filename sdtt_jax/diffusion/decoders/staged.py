"""Two models that take turns: the model itself makes the first calls, its helper the next, and so on."""

import dataclasses
import functools
from itertools import pairwise

import jax
import jax.numpy as jnp

from sdtt_jax.config import number, require
from sdtt_jax.diffusion.calls import calls_of_share
from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene
from sdtt_jax.diffusion.decoders.filling import reveal_due
from sdtt_jax.typing import Key, Tokens


@dataclasses.dataclass(frozen=True)
class Staged:
    """Which model makes which calls; tokens are revealed as by "first-hitting"."""

    # Shares of the calls at which the turn passes to the other model; the model itself begins: "0.5", or
    # "0.25/0.75" for a helper that makes the middle half.
    until: str = "0.5"

    def __post_init__(self) -> None:
        self.turns  # noqa: B018

    @property
    def turns(self) -> tuple[float, ...]:
        """The shares as numbers."""
        try:
            turns = tuple(number(float, part) for part in self.until.split("/"))
        except ValueError:
            turns = (-1.0,)
        require(
            all(0 <= turn <= 1 for turn in turns) and all(a < b for a, b in pairwise(turns)),
            f"until={self.until!r} must be shares from 0 to 1, rising, with '/' between them, as in "
            "'0.25/0.75'.",
        )
        return turns

    def whose(self, call: jax.Array | int, num_steps: int) -> jax.Array:
        """0 for a call of the model itself, 1 for a call of its helper."""
        ends = jnp.array([calls_of_share(turn, num_steps) for turn in self.turns], jnp.int32)
        return (call >= ends).sum(dtype=jnp.int32) % 2


def staged_step(
    options: Staged, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: a reverse step of the model whose turn it is; no call where nothing is due."""
    theirs = dataclasses.replace(scene.diffusion, denoiser=scene.other.network)
    their_scene = scene._replace(diffusion=theirs, params=scene.other.params)
    turns = [functools.partial(reveal_due, who, key, now) for who in (scene, their_scene)]
    x, calls = jax.lax.switch(options.whose(now.call, scene.num_steps), turns, now.x)
    return x, calls, now.memory
