"""The masked diffusion network: a DiT with adaLN, as two pure functions.

`hidden` ends after the final modulated norm and `logits` is one linear map from there, so that losses
and samplers can keep hidden states and apply the head only where they need it.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdtt_jax.networks import layers
from sdtt_jax.networks.attention import attend_rotated, rotary_tables, rotate
from sdtt_jax.networks.base import Network, block_variables, of_blocks, variables
from sdtt_jax.networks.cache import LayerPast, attend_visible, no_past
from sdtt_jax.networks.config import DenoiserConfig, Numerics
from sdtt_jax.typing import Hidden, Params, PerSequence, Segments, Tokens

TIME_FEATURES = 256
TIME_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Denoiser(Network):
    """A denoiser as pure functions of its parameters (plain nested dicts): a DiT (arXiv 2212.09748).

    Its logits have a column for MASK too, which means nothing: losses and samplers leave it out (SUBS),
    except the divergences "mse" and "log-l1", which compare it as the reference code does.
    """

    config: DenoiserConfig  # sizes; vocabulary and length must be set

    # States are alike throughout a text of one token: a position only turns its query and key, and attention
    # averages values, which are all alike.
    position_free: ClassVar[bool] = True

    @functools.cached_property
    def _module(self) -> "DiT":
        return DiT(self.config)

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        *,
        segments: Segments | None = None,
    ) -> Hidden:
        """Final hidden states.

        Args:
          params: parameters, unboxed.
          tokens: `[batch, length]` int32, MASK included.
          sigma: `[batch]` float32, total noise; used only if the config says `time_conditioned`
            (None is 0).
          segments: attention is confined to each; None: a sequence is one segment.

        Returns:
          `[batch, length, embed]`, the compute dtype.
        """
        sigma = self._sigma_seen(sigma)
        return self._apply(params, tokens, sigma, segments, method="hidden")

    def decode(
        self,
        params: Params,
        tokens: Tokens,
        past: LayerPast | None = None,
        start: jax.Array | int = 0,
        visible: jax.Array | None = None,
    ) -> tuple[Hidden, LayerPast]:
        """Hidden states of `n` consecutive positions, and their keys and values for a cache.

        Args:
          params: unboxed parameters of a network that is not conditioned on time.
          tokens: `[batch, n]` int32, MASK included.
          past: keys and values of other positions, `[layers, batch, heads, capacity, kv]`; None for none.
          start: `[]` int32, the position of the first token.
          visible: `[n, capacity + n]` bool, what each position sees of the cache and of the `n` positions;
            None: all of the latter and nothing of the cache.

        Returns:
          `[batch, n, embed]`, and new keys and values `[layers, batch, heads, n, kv]`.
        """
        if past is None:
            past = no_past(self.config, len(tokens))
        module = DiT(dataclasses.replace(self.config, remat="none"))
        decoded: Any = module.apply(
            variables(params), tokens, self._sigma_seen(None), past, start, visible, method="decode"
        )
        hidden, new = decoded
        return hidden, new

    def layer_states(
        self, params: Params, tokens: Tokens, layer: int, *, segments: Segments | None = None
    ) -> Hidden:
        """The output of block `layer`, counted from 1, for clean texts; later blocks are not computed.

        Args:
          params: parameters, unboxed.
          tokens: `[batch, length]` int32.
          layer: at most `config.num_layers`.
          segments: as `hidden` takes them.

        Returns:
          `[batch, length, embed]`, the compute dtype.
        """
        module = DiT(dataclasses.replace(self.config, num_layers=layer, unroll=1))
        first = variables(of_blocks(params, slice(layer)))
        sigma = self._sigma_seen(None)
        states: Any = module.apply(first, tokens, sigma, segments, method="states")
        return states

    def embedded(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        segments: Segments | None = None,
    ) -> tuple[Hidden, Any]:
        """What the first block reads, and what each block reads besides states; arguments as of `hidden`.

        `hidden` is this, `next_states` for each block, and `normed`.
        """
        return self._apply(params, tokens, self._sigma_seen(sigma), segments, method="embedded")

    def next_states(self, params: Params, index: jax.Array, x: Hidden, shared: Any) -> Hidden:
        """The output of block `index`, `[]` int32 counted from 0, for `x` and `shared` of `embedded`."""
        own = block_variables(of_blocks(params, index))
        states: Any = DenoiserBlock(self.config).apply(own, x, None, shared)
        return states[0]

    def normed(self, params: Params, x: Hidden, shared: Any) -> Hidden:
        """What the head reads from states `x`, with `shared` of `embedded`."""
        return self._apply(params, x, shared, method="normed")

    def _sigma_seen(self, sigma: PerSequence | None) -> PerSequence:
        """The total noise passed to the module: zero unless the network is conditioned on time."""
        if sigma is None or not self.config.time_conditioned:
            # One row that broadcasts: the modulation is then computed once, not once per sequence.
            return jnp.zeros((1,), jnp.float32)
        return sigma


def time_features(sigma: jax.Array) -> jax.Array:
    """The time embedding's features: `[cos(sigma f), sin(sigma f)]` with `f_i = 10000^(-i/128)`.

    Args:
      sigma: `[batch]`, total noise.

    Returns:
      `[batch, 256]` float32.
    """
    half = TIME_FEATURES // 2
    frequency = TIME_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = sigma.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Modulation(nn.Module):
    """`count` vectors of `dim` features from the condition, starting at zero (adaLN-zero).

    They are `[dim]` if the condition has one row, which is that of all texts, or else `[batch, 1, dim]`.
    """

    cond_dim: int
    dim: int
    count: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        shape = (self.count, self.dim)
        axes = (None, None, "embed")
        numerics = Numerics(self.dtype, self.dtype)  # not rounded: one row, or one for each text
        out = layers.Linear(
            (self.cond_dim,), shape, axes, zero=True, numerics=numerics, name="linear"
        )(condition)
        return [out[0, i] if len(out) == 1 else out[:, None, i] for i in range(self.count)]


def modulated(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """`x * (1 + scale) + shift` for vectors of `Modulation`."""
    return x * layers.spread(1 + scale, x) + layers.spread(shift, x)


class SigmaMap(nn.Module):
    """Time embedding: features, linear, SiLU, linear, SiLU."""

    cond_dim: int

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        x = time_features(sigma)
        x = layers.Linear((TIME_FEATURES,), (self.cond_dim,), (None, None), name="up")(x)
        x = layers.Linear((self.cond_dim,), (self.cond_dim,), (None, None), name="down")(
            jax.nn.silu(x)
        )
        return jax.nn.silu(x)


class DenoiserBlock(nn.Module):
    """Modulated attention and MLP; returns `x` and, with a cache, the new keys and values."""

    config: DenoiserConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, past: LayerPast | None, shared: tuple[Any, ...]
    ) -> tuple[jax.Array, LayerPast | None]:
        c = self.config
        condition, cos, sin, segments, visible = shared
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = Modulation(
            c.cond_dim, c.embed_dim, 6, c.numerics.dtype, name="adaln"
        )(condition)

        y = modulated(layers.LayerNorm(c.embed_dim, name="norm1")(x), scale_a, shift_a)
        new: LayerPast | None = None
        if past is None:
            mixed = attend_rotated(layers.attention_inputs(c, y, bias=False), cos, sin, segments)
        else:
            query, key, value = layers.queries_keys_values(c, y, bias=False)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
            mixed, new = attend_visible(query, key, value, past, visible)
        x = x + layers.spread(gate_a, x) * layers.merged_heads(c, mixed, bias=False)

        y = modulated(layers.LayerNorm(c.embed_dim, name="norm2")(x), scale_m, shift_m)
        mlp = layers.Mlp(c.embed_dim, c.mlp_ratio * c.embed_dim, c.numerics, name="mlp")
        x = x + layers.spread(gate_m, x) * mlp(y)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), new


class FinalNorm(nn.Module):
    """The norm before the head, modulated."""

    config: DenoiserConfig

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        c = self.config
        shift, scale = Modulation(c.cond_dim, c.embed_dim, 2, c.numerics.dtype, name="adaln")(
            condition
        )
        return modulated(layers.LayerNorm(c.embed_dim, name="norm")(x), scale, shift)


class DiT(nn.Module):
    """Embedding, scanned blocks, final norm, head."""

    config: DenoiserConfig

    def setup(self) -> None:
        c = self.config
        self.embed = layers.Embedding(c.padded_vocab, c.embed_dim, c.numerics)
        self.sigma_map = SigmaMap(c.cond_dim)
        self.blocks = layers.scan_blocks(DenoiserBlock, c)
        self.final = FinalNorm(c)
        self.head = layers.Head(c.embed_dim, c.vocab_size + 1, c.padded_vocab, c.numerics)

    def hidden(
        self, tokens: jax.Array, sigma: jax.Array, segments: jax.Array | None = None
    ) -> jax.Array:
        return self.from_embedded(self.embed(tokens), sigma, segments)

    def states(
        self, tokens: jax.Array, sigma: jax.Array, segments: jax.Array | None = None
    ) -> jax.Array:
        return self.through_blocks(*self.embedded(tokens, sigma, segments))

    def embedded(
        self, tokens: jax.Array, sigma: jax.Array, segments: jax.Array | None
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        x = self.embed(tokens)
        return x, self.shared(x, sigma, segments)

    def from_embedded(
        self, x: jax.Array, sigma: jax.Array, segments: jax.Array | None = None
    ) -> jax.Array:
        shared = self.shared(x, sigma, segments)
        return self.normed(self.through_blocks(x, shared), shared)

    def condition(self, sigma: jax.Array) -> jax.Array:
        return self.sigma_map(sigma).astype(self.config.numerics.dtype)

    def shared(self, x: jax.Array, sigma: jax.Array, segments: jax.Array | None) -> tuple[Any, ...]:
        condition = self.condition(sigma)
        rotary = rotary_tables(jnp.arange(x.shape[1], dtype=jnp.int32), self.config.head_dim)
        return condition, *rotary, segments, None

    def through_blocks(self, x: jax.Array, shared: tuple[Any, ...]) -> jax.Array:
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        x, _ = self.blocks(x, None, shared)
        return x

    def normed(self, x: jax.Array, shared: tuple[Any, ...]) -> jax.Array:
        return self.final(x, shared[0])

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.head(hidden)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.hidden(tokens, jnp.zeros((1,), jnp.float32)))

    def decode(
        self,
        tokens: jax.Array,
        sigma: jax.Array,
        past: LayerPast,
        start: jax.Array | int,
        visible: jax.Array | None,
    ) -> tuple[jax.Array, LayerPast]:
        condition = self.condition(sigma)
        positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        rotary = rotary_tables(positions, self.config.head_dim)
        x, new = self.blocks(self.embed(tokens), past, (condition, *rotary, None, visible))
        return self.final(x, condition), new
