"""A denoiser that sees the noise of its masked positions: the student of noise-coupled distillation.

The noise's features pass through a small network, whose last layer starts at zero, and are added to MASK's
embedding. So at first it predicts the same as the denoiser that it was made from, whatever the noise is. Only
noise with few values ("latent", "masks") changes a little from the start (`NoiseFeatures`).
"""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig, Numerics
from sdtt_jax.networks.denoiser import Denoiser, DiT
from sdtt_jax.networks.layers import Linear, parameter
from sdtt_jax.ops.categorical import BLOCK
from sdtt_jax.ops.noise import FULL, Noise, draw_noise, num_values
from sdtt_jax.typing import Hidden, Key, Params, PerSequence, PerToken, Positions, Segments, Tokens

# A Gumbel number lies in this range with probability 0.99; numbers outside are shown as its bound.
GUMBEL_RANGE = (-2.0, 5.0)
# A place in the order is shown as sines of this many octaves; the finest tell 128 places apart.
OCTAVES = 7
# Marks which features of the order, `[4 * OCTAVES]`, show a position's own number, not its rank.
OWN = np.tile(np.repeat([1.0, 0.0], OCTAVES), 2).astype(np.float32)


@flax.struct.dataclass
class ShownNoise:
    """The part of the noise features that does not change between calls, computed before the first one."""

    order: jax.Array  # `[batch, length]` float32, as in `Noise`
    # `[batch, length, hidden_dim]`, the hidden layer before its activation, without the rank's part.
    inner: jax.Array


@dataclasses.dataclass(frozen=True)
class CoupledDenoiser(Denoiser):
    """A `Denoiser` that sees noise."""

    config: CoupledConfig  # sizes, and what it sees of the noise

    @functools.cached_property
    def _module(self) -> "CoupledDiT":
        return CoupledDiT(self.config)

    @property
    def noise_kind(self) -> str:
        """The kind of noise that it needs, as `ops.noise.draw_noise` takes it."""
        return self.config.noise.drawn

    def init_from(self, params: Params, key: Key) -> Params:
        """A denoiser's `params`, plus initial ones of the noise features (unboxed, at or near zero)."""
        fresh = nn.meta.unbox(self.init(key))
        return params | {"noise": fresh["noise"]}

    def shown(self, params: Params, noise: Noise) -> Noise | ShownNoise:
        """The argument for `hidden` in place of `noise` when it is called several times with the same noise.

        Args:
          params: parameters, unboxed.
          noise: noise of `[batch, length]` positions.
        """
        if num_values(self.noise_kind):
            return noise
        return self._apply(params, noise, method="shown")

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        noise: Noise | ShownNoise | None = None,
        *,
        segments: Segments | None = None,
    ) -> Hidden:
        """Final hidden states, given the noise of the masked positions.

        Args:
          params: parameters, unboxed.
          tokens: `[batch, length]` int32, MASK included.
          sigma: `[batch]` float32, total noise of the process; only for a time-conditioned network.
          noise: noise of `[batch, length]` positions, or `shown` of it; None: nothing is added to
            MASK's embedding.
          segments: as `Denoiser.hidden` takes them; only without noise.

        Returns:
          `[batch, length, embed]`, the compute dtype.

        Raises:
          ConfigError: both noise and segments are given.
        """
        if noise is None:
            return super().hidden(params, tokens, sigma, segments=segments)
        require(
            segments is None,
            "A network that sees noise ranks the positions of a whole sequence and cannot be confined to "
            "segments; give it packed sequences.",
        )
        sigma = self._sigma_seen(sigma)
        return self._apply(params, tokens, sigma, noise, method="hidden_given")


class CoupledDiT(DiT):
    """The denoiser's network, with a small one that reads noise."""

    config: CoupledConfig

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.noise = NoiseFeatures(c.noise, c.vocab_size, c.embed_dim, c.numerics)

    def hidden_given(
        self, tokens: jax.Array, sigma: jax.Array, noise: Noise | ShownNoise
    ) -> jax.Array:
        masked = tokens == self.config.mask_id
        features = self.noise(noise, masked)
        shown = jnp.where(masked[..., None], features, 0.0)
        return self.from_embedded(self.embed(tokens) + shown, sigma)

    def shown(self, noise: Noise) -> ShownNoise:
        return self.noise.shown(noise)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        noise = draw_noise(jax.random.key(0), tokens.shape, c.vocab_size, c.noise.drawn)
        return self.logits(self.hidden_given(tokens, jnp.zeros((1,), jnp.float32), noise))


class NoiseFeatures(nn.Module):
    """Maps noise to features of width `dim`, zero at the start.

    The features of values ("latent", "masks") start small instead, since equal ones would stay equal.
    """

    config: NoiseConfig
    vocab: int
    dim: int
    numerics: Numerics

    def setup(self) -> None:
        c = self.config
        if num_values(c.drawn):
            init, size = nn.initializers.normal(0.1), (c.num_values, self.dim)
            self.values = parameter(self, "values", init, (None, "embed"), size)
            return
        columns = self.vocab if c.drawn == FULL else -(-self.vocab // BLOCK) + BLOCK
        width = len(OWN) + 2 * columns
        if c.kind == "projected":
            width = len(OWN) + c.projection
            self.token = Linear((columns,), (c.projection,), ("vocab", None), bias=False)
        inner, outer = (c.hidden_dim,), (self.dim,)
        self.up = Linear((width,), inner, (None, "mlp"), numerics=self.numerics)
        self.down = Linear(inner, outer, ("mlp", "embed"), zero=True, numerics=self.numerics)

    def __call__(self, noise: Noise | ShownNoise, masked: Positions) -> jax.Array:
        dtype = self.numerics.dtype
        if isinstance(noise, ShownNoise):
            kernel = self.up.variables["params"]["kernel"][: len(OWN)].astype(dtype)
            x = noise.inner + rank_waves(noise.order, masked).astype(dtype) @ kernel
        elif num_values(self.config.drawn):
            return noise.token.astype(dtype) @ self.values.astype(dtype)
        else:
            x = self._inner(order_features(noise.order, masked), noise)
        return self.down(jax.nn.gelu(x, approximate=True))

    def shown(self, noise: Noise) -> ShownNoise:
        own = jnp.asarray(OWN) * waves(noise.order, noise.order)
        return ShownNoise(noise.order, self._inner(own, noise))

    def _inner(self, order: jax.Array, noise: Noise) -> jax.Array:
        """The hidden layer before its activation, from features of the order and the Gumbel numbers."""
        seen = [order]
        for numbers in (noise.token, noise.entry):
            if numbers is None:
                continue
            shares = jax.nn.softmax(numbers, axis=-1)
            if self.config.kind == "projected":
                seen.append(self.token(shares))
            else:
                seen += [shares, jnp.clip(numbers, *GUMBEL_RANGE)]
        return self.up(jnp.concatenate(seen, axis=-1))


def order_features(order: PerToken, masked: Positions) -> jax.Array:
    """Features of the order: waves of each position's number and of its rank among those still masked.

    Args:
      order: `[batch, length]` float32 in [0, 1).
      masked: `[batch, length]` bool.

    Returns:
      `[batch, length, features]` float32.
    """
    return waves(order, places_in_order(order, masked).astype(jnp.float32) / order.shape[-1])


def rank_waves(order: PerToken, masked: Positions) -> jax.Array:
    """`order_features`, with zeros as the features of a position's own number."""
    length = order.shape[-1]
    share = jnp.arange(length, dtype=jnp.float32) / length
    return ((1.0 - OWN) * waves(share, share))[places_in_order(order, masked)]


def waves(number: jax.Array, rank: jax.Array) -> jax.Array:
    """Sines and cosines of two numbers of each position, `[...]` each: `[..., 4 * OCTAVES]` float32."""
    octaves = jnp.pi * 2.0 ** jnp.arange(OCTAVES, dtype=jnp.float32)
    angles = jnp.stack([number, rank], axis=-1)[..., None] * octaves
    angles = angles.reshape(*number.shape, 2 * OCTAVES)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def places_in_order(order: PerToken, masked: Positions) -> jax.Array:
    """How many masked positions come before each position: `[batch, length]` int32.

    Counting takes 1.7 ms of CPU time for 64 × 64 numbers with their waves, where sorting twice takes 2.7.
    """
    place = jnp.arange(order.shape[-1])
    other, own = order[:, None, :], order[:, :, None]
    before = (other > own) | ((other == own) & (place < place[:, None]))
    return (masked[:, None, :] & before).sum(axis=-1, dtype=jnp.int32)
