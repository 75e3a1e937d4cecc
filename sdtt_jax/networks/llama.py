"""The Llama family: one block for causal models and for denoisers, from Llama and SmolLM2 to LLaDA and Dream.

RMS norms, attention whose key and value heads serve several query heads, rotary embeddings, and an MLP with a
gate (arXiv 2302.13971, 2305.13245). `LlamaNetwork` is causal, with the interface and the cache of
`CausalNetwork`; `LlamaDenoiser` is a denoiser. Both have the same parameters.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdtt_jax.networks import layers
from sdtt_jax.networks.attention import rotary_tables, rotate, rotate_neighbours
from sdtt_jax.networks.base import AdaptedDenoiser
from sdtt_jax.networks.cache import LayerPast, no_past
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import LlamaConfig, LlamaDenoiserConfig, Numerics
from sdtt_jax.typing import Hidden, Params, Tokens


@dataclasses.dataclass(frozen=True)
class LlamaNetwork(CausalNetwork):
    """A causal network of the Llama family as pure functions of its parameters."""

    config: LlamaConfig

    @functools.cached_property
    def _module(self) -> layers.DecoderOnly:
        return Llama(self.config)


@dataclasses.dataclass(frozen=True)
class LlamaDenoiser(AdaptedDenoiser):
    """A denoiser of the Llama family as pure functions of its parameters."""

    config: LlamaDenoiserConfig  # sizes; vocabulary and length must be set

    position_free: ClassVar[bool] = True  # as a `Denoiser`'s

    @functools.cached_property
    def _module(self) -> layers.DecoderOnly:
        return Llama(self.config)

    def decode(
        self,
        params: Params,
        tokens: Tokens,
        past: LayerPast | None = None,
        start: jax.Array | int = 0,
        visible: jax.Array | None = None,
    ) -> tuple[Hidden, LayerPast]:
        """As `Denoiser.decode`, of a network that sees both ways; keys and values have `kv_heads` heads.

        Also with `shift`, each hidden state is at the position that computes it.
        """
        if past is None:
            past = no_past(self.config, len(tokens))
        return self._apply(params, tokens, past, start, None, visible, method="decode")


class RMSNorm(nn.Module):
    """Division by the root of the mean square, and a scale; computed in float32."""

    dim: int  # features, all of the last axis
    epsilon: float  # added to the mean square
    axis: str = "embed"  # logical name of the scale's axis

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = layers.parameter(self, "scale", nn.initializers.ones, (self.axis,), (self.dim,))
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * layers.spread(scale, x)).astype(x.dtype)


class GatedMlp(nn.Module):
    """Two linear maps, the SiLU of one times the other, and a linear map back; without biases."""

    dim: int
    hidden: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def linear(name: str, sizes: tuple[int, int], axes: tuple[str, str]) -> layers.Linear:
            return layers.Linear(
                sizes[:1], sizes[1:], axes, bias=False, numerics=self.numerics, name=name
            )

        inwards, outwards = (self.dim, self.hidden), (self.hidden, self.dim)
        gate = linear("gate", inwards, ("embed", "mlp"))(x)
        up = linear("up", inwards, ("embed", "mlp"))(x)
        return linear("down", outwards, ("mlp", "embed"))(jax.nn.silu(gate) * up)


class LlamaBlock(layers.DecoderBlock):
    """A block with rotary embeddings, whose key and value heads may be fewer than its query heads."""

    config: LlamaConfig

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.config.embed_dim, self.config.norm_epsilon, name=name)

    def heads(self, y: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, ...]:
        c = self.config
        query = self._rotated(self._heads("q", c.num_heads, "heads")(y), "q", cos, sin)
        key = self._rotated(self._heads("k", c.kv_heads, "kv_heads")(y), "k", cos, sin)
        return query, key, self._heads("v", c.kv_heads, "kv_heads")(y)

    def mlp(self) -> GatedMlp:
        c = self.config
        return GatedMlp(c.embed_dim, c.mlp_dim, c.numerics, name="mlp")

    def _heads(self, name: str, count: int, axis: str) -> layers.Linear:
        c = self.config
        return layers.Linear(
            (c.embed_dim,),
            (count, c.head_dim),
            ("embed", axis, "kv"),
            bias=c.qkv_bias,
            numerics=c.numerics,
            name=f"attn_{name}",
        )

    def _rotated(self, x: jax.Array, name: str, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """Queries or keys, normalised if the config says so, with their first features turned."""
        c = self.config
        if c.qk_norm:
            x = RMSNorm(c.head_dim, c.norm_epsilon, "kv", name=f"{name}_norm")(x)
        turn = rotate if c.rotary_pairs == "halves" else rotate_neighbours
        if c.rotary_dim == c.head_dim:
            return turn(x, cos, sin)
        turned, rest = jnp.split(x, [c.rotary_dim], axis=-1)
        return jnp.concatenate([turn(turned, cos, sin), rest], axis=-1)


class Llama(layers.DecoderOnly):
    """Embedding, scanned blocks, final norm, head."""

    config: LlamaConfig
    block = LlamaBlock

    def setup(self) -> None:
        c = self.config
        self.embed = layers.Embedding(c.padded_vocab, c.embed_dim, c.numerics)
        self.blocks = layers.scan_blocks(LlamaBlock, c)
        self.final = RMSNorm(c.embed_dim, c.norm_epsilon)
        if not c.tied_head:
            self.head = layers.Head(c.embed_dim, c.columns, c.padded_vocab, c.numerics, bias=False)

    def start(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        c = self.config
        rotary = rotary_tables(positions, c.rotary_dim, c.rotary_base, c.rotary_scaling)
        return self.embed(tokens), rotary

    def logits(self, hidden: jax.Array) -> jax.Array:
        if self.config.tied_head:
            return layers.without_padding(self.embed.attend(hidden), self.config.columns)
        return super().logits(hidden)
