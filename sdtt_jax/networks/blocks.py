"""Block-causal attention: a block sees itself and earlier blocks (block diffusion, arXiv 2503.09573)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.interface import Wrapped
from sdtt_jax.networks.cache import LayerPast
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.networks.llama import LlamaDenoiser
from sdtt_jax.ops.sequences import predicted_before
from sdtt_jax.typing import Hidden, Params, PerSequence, Tokens


def block_mask(length: int, block: int) -> jax.Array:
    """`[length, length]` bool: position i sees the positions of its block and of earlier ones."""
    number = jnp.arange(length) // block
    return number[:, None] >= number


@dataclasses.dataclass(frozen=True)
class BlockCausal(Wrapped):
    """A denoiser whose attention is block-causal, with the parameters of `network`.

    The keys and values of a finished block never change, so they can be kept.
    """

    network: Denoiser | LlamaDenoiser  # the denoiser, not conditioned on time
    block: int  # positions of a block

    def hidden(self, params: Params, tokens: Tokens, sigma: PerSequence | None = None) -> Hidden:
        """Hidden states of whole sequences, `[batch, length, embed]`."""
        del sigma
        visible = block_mask(tokens.shape[1], self.block)
        hidden, _ = self.network.decode(params, tokens, visible=visible)
        return predicted_before(hidden, None) if getattr(self.config, "shift", False) else hidden

    def decode(self, params: Params, tokens: Tokens, *cache: Any) -> tuple[Hidden, LayerPast]:
        """The network's `decode`."""
        return self.network.decode(params, tokens, *cache)
