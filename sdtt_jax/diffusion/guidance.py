"""Classifier-free guidance: amplifies the effect of the given text on the predictions.

For masked diffusion: arXiv 2412.10193, whose γ is `1 + scale`; LLaDA (arXiv 2502.09992) names it `cfg_scale`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import require
from sdtt_jax.diffusion.decoders import Mode
from sdtt_jax.diffusion.decoders.blocks import Blocks
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.interface import Wrapped
from sdtt_jax.ops.values import extremes
from sdtt_jax.typing import Hidden, Params, PerSequence, Positions, Tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Guided(Wrapped):
    """A denoiser with the logits `l + scale * (l - l_free)`, where `l_free` are those without the given text.

    The head is linear, so hidden states are combined in the same way, and the head still runs once.
    """

    given: Positions  # `[batch, length]` bool, the positions that were given at the start
    scale: float  # 0 is no guidance

    def hidden(self, params: Params, tokens: Tokens, sigma: PerSequence | None = None) -> Hidden:
        """Hidden states `[batch, length, embed]`, combined from two calls: with and without the given text.

        Both calls get the same `sigma`. They run one after the other, in a program that holds the network
        once. `tokens` may hold several consecutive rows for each text.
        """
        given = jnp.repeat(self.given, len(tokens) // len(self.given), axis=0)
        free = jnp.where(given, self.mask_id, tokens)
        both = jnp.stack([tokens, free])
        seen, unseen = jax.lax.map(lambda x: self.network.hidden(params, x, sigma), both)
        wide = jnp.promote_types(seen.dtype, jnp.float32)
        seen, unseen = seen.astype(wide), unseen.astype(wide)
        return seen + self.scale * (seen - unseen)


def check_guided(scale: float, mode: Mode) -> None:
    """Raises `ConfigError` for a decoder that cannot be guided: with another model, or with a cache."""
    require(
        scale == 0 or not mode.decoder.helper,
        f"mode={mode} also asks a second model, which is not guided; set guidance=0 or take another mode.",
    )
    cache = mode.options.cache if isinstance(mode.options, Blocks) else "none"
    require(
        scale == 0 or cache == "none",
        f"mode={mode}: guidance reads a text with and without what is given, and cache={cache} keeps keys "
        "and values of one reading; set guidance=0 or add cache=none to the mode.",
    )


def check_given(scale: float, x_init: Tokens, mask_id: int) -> None:
    """Raises `ConfigError` for guidance without any given token, unless `x_init` is traced."""
    require(
        scale == 0 or extremes(x_init) != (mask_id, mask_id),
        f"guidance={scale:g} needs given text; give a prompt or an infill, or set guidance=0.",
    )


def guided(diffusion: MaskedDiffusion, given: Positions, scale: float) -> MaskedDiffusion:
    """The model with guidance; unchanged where `scale` is 0.

    It holds an array, so it cannot be a static argument of `jit`: make it inside the function.

    Args:
      diffusion: the model.
      given: `[batch, length]` bool, the positions that were given at the start.
      scale: `guidance` of `SamplerConfig`.

    Raises:
      ConfigError: as `check_guidable`.
    """
    check_guidable(diffusion, scale)
    if scale == 0:
        return diffusion
    network: Any = Guided(diffusion.denoiser, given, scale)
    return dataclasses.replace(diffusion, denoiser=network)


def check_guidable(diffusion: MaskedDiffusion, scale: float) -> None:
    """Raises `ConfigError` for guidance of a network that sees noise, or whose logits are no linear map."""
    require(
        scale == 0 or getattr(diffusion.denoiser, "linear_head", True),
        "guidance combines logits that are a linear map of hidden states, and neighbours are mixed in after "
        "that; set guidance=0 or leave the neighbours out.",
    )
    require(
        scale == 0 or diffusion.noise_kind is None,
        "guidance is for networks that see no noise, and this one was trained to see it; set guidance=0.",
    )
