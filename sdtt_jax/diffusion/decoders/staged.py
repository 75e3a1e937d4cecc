"""Two models, one after the other: the model itself makes the first calls, its helper the rest."""

import dataclasses
import functools

import jax

from sdtt_jax.config import within
from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene
from sdtt_jax.diffusion.decoders.filling import reveal_due
from sdtt_jax.typing import Key, Tokens


@dataclasses.dataclass(frozen=True)
class Staged:
    """Which calls are whose; tokens are revealed as by "first-hitting"."""

    until: float = 0.5  # share of the calls that the model makes before its helper takes over

    def __post_init__(self) -> None:
        within("[0, 1]", self, "until")

    def own_calls(self, num_steps: int) -> int:
        """How many calls the model itself makes."""
        return round(self.until * num_steps)


def staged_step(
    options: Staged, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: a reverse step of whoever's turn it is; no call where nothing is due."""
    helper = scene.helper
    assert helper is not None  # `serving.begin` has said so
    theirs = dataclasses.replace(scene.diffusion, denoiser=helper.network)
    other = scene._replace(diffusion=theirs, params=helper.params)
    own, others = (functools.partial(reveal_due, who, key, now) for who in (scene, other))
    x, calls = jax.lax.cond(now.call < options.own_calls(scene.num_steps), own, others, now.x)
    return x, calls, now.memory
