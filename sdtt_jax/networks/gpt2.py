"""GPT-2 in the form of its published weights, as the judge of generative perplexity, and DiffuGPT.

Learned positions, norms and projections with bias, tanh-GELU, and a head tied to the token
embedding (Radford et al. 2019). Interface and cache are those of `CausalNetwork`.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdtt_jax.config import require
from sdtt_jax.networks import layers
from sdtt_jax.networks.base import AdaptedDenoiser
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import GPT2Config as GPT2Config
from sdtt_jax.networks.config import GPT2DenoiserConfig as GPT2DenoiserConfig

INIT_SCALE = 0.02


@dataclasses.dataclass(frozen=True)
class GPT2Network(CausalNetwork):
    """A GPT-2 as pure functions of its parameters; its head is the token embedding."""

    config: GPT2Config

    @property
    def max_length(self) -> int:
        return self.config.length

    @functools.cached_property
    def _module(self) -> layers.DecoderOnly:
        return GPT2(self.config)


@dataclasses.dataclass(frozen=True)
class GPT2Denoiser(AdaptedDenoiser):
    """DiffuGPT (arXiv 2410.17891) as pure functions of its parameters; its head is the token embedding."""

    config: GPT2DenoiserConfig  # sizes; `length` is the most positions that it has embeddings for

    @functools.cached_property
    def _module(self) -> layers.DecoderOnly:
        return GPT2(self.config)


def _norm(config: GPT2Config, name: str | None = None) -> nn.LayerNorm:
    # The two-pass variance: the fast one loses digits where the mean is large, as GPT-2's are.
    return nn.LayerNorm(
        epsilon=config.norm_epsilon,
        use_fast_variance=False,
        dtype=jnp.dtype(config.numerics.dtype),
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


class GPT2Block(layers.DecoderBlock):
    """A block with biases, without rotary embeddings."""

    config: GPT2Config
    bias: ClassVar[bool] = True

    def norm(self, name: str) -> nn.LayerNorm:
        return _norm(self.config, name)

    def heads(self, y: jax.Array) -> list[jax.Array]:
        return layers.queries_keys_values(self.config, y, bias=True)


class GPT2(layers.DecoderOnly):
    """Token and position embedding, scanned blocks, final norm, tied head."""

    config: GPT2Config
    block = GPT2Block

    def setup(self) -> None:
        c, init = self.config, nn.initializers.normal(INIT_SCALE)
        self.embed = layers.Embedding(c.padded_vocab, c.embed_dim, c.numerics, init)
        self.positions = layers.Embedding(c.length, c.embed_dim, c.numerics, init, axis=None)
        self.blocks = layers.scan_blocks(GPT2Block, c)
        self.final = _norm(c)

    def start(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        return self.embed(tokens) + self.positions(positions), ()

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        edges: jax.Array | None = None,
    ) -> jax.Array:
        require(
            segments is None,
            "GPT-2 uses absolute positions and cannot be confined to segments; give it packed sequences.",
        )
        length, most = tokens.shape[1], self.config.length
        require(
            length <= most,
            f"length={length} exceeds the {most} positions of this network; reduce it.",
        )
        return super().hidden(tokens, None, edges)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return layers.without_padding(self.embed.attend(hidden), self.config.columns)
