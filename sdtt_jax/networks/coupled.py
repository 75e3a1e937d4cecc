"""A denoiser that sees the noise of its masked positions: what noise-coupled distillation trains.

The noise's features pass through a small network, whose last layer starts at zero, and are added to MASK's
embedding. So a new one is the denoiser that it was made from, and says the same whatever the noise is.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdtt_jax.config import require
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.denoiser import Denoiser, DiT
from sdtt_jax.networks.layers import Linear, parameter
from sdtt_jax.ops.noise import Noise, draw_noise, num_values
from sdtt_jax.typing import Hidden, Key, Params, PerSequence, PerToken, Positions, Segments, Tokens

# A Gumbel number lies in here with probability 0.99; what lies outside is shown as the bound.
GUMBEL_RANGE = (-2.0, 5.0)
# The place in the order is shown as sines of so many octaves: the finest tell 128 places apart.
OCTAVES = 7


@dataclasses.dataclass(frozen=True)
class CoupledDenoiser(Denoiser):
    """`Denoiser` with noise."""

    config: CoupledConfig  # sizes, and what is seen of the noise

    @functools.cached_property
    def _module(self) -> "CoupledDiT":
        return CoupledDiT(self.config)

    @property
    def noise_levels(self) -> str:
        """The noise that it needs, as `ops.noise.draw_noise` takes it."""
        return self.config.noise.levels

    def init_from(self, params: Params, key: Key) -> Params:
        """Parameters that make of a denoiser's `params` a coupled one which says the same, unboxed."""
        fresh = nn.meta.unbox(self.init(key))
        return params | {"noise": fresh["noise"]}

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        noise: Noise | None = None,
        *,
        segments: Segments | None = None,
    ) -> Hidden:
        """Final hidden states, given the noise of the masked positions.

        Args:
          params: parameters, unboxed.
          tokens: `[batch, length]` int32, MASK included.
          sigma: `[batch]` float32, total noise of the process; only for a time-conditioned network.
          noise: of `[batch, length]` positions; without it, nothing is added to MASK's embedding.
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
            "segments; give it one text for each sequence.",
        )
        sigma = self._sigma_seen(sigma)
        hidden: Any = self._apply(params, tokens, sigma, noise, method="hidden_given")
        return hidden


class CoupledDiT(DiT):
    """The denoiser's network, and the one that reads noise."""

    config: CoupledConfig

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.noise = NoiseFeatures(c.noise, c.embed_dim, jnp.dtype(c.compute_dtype))

    def hidden_given(self, tokens: jax.Array, sigma: jax.Array, noise: Noise) -> jax.Array:
        masked = tokens == self.config.mask_id
        features = self.noise(noise, masked)
        return self.from_embedded(self.embed(tokens) + masked[..., None] * features, sigma)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        noise = draw_noise(jax.random.key(0), tokens.shape, c.vocab_size, c.noise.levels)
        return self.logits(self.hidden_given(tokens, jnp.zeros((1,), jnp.float32), noise))


class NoiseFeatures(nn.Module):
    """Noise to features of width `dim`, zero at the start.

    Those of a value are not zero but small, for values that start alike would stay so.
    """

    config: NoiseConfig
    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, noise: Noise, masked: Positions) -> jax.Array:
        c = self.config
        if num_values(c.levels):
            size = (c.num_values, self.dim)
            table = parameter(self, "values", nn.initializers.normal(0.1), (None, "embed"), size)
            return noise.token.astype(self.dtype) @ table.astype(self.dtype)
        seen = [order_features(noise.order, masked)]
        for name, numbers in (("token", noise.token), ("entry", noise.entry)):
            if numbers is None:
                continue
            shares = jax.nn.softmax(numbers, axis=-1)
            if c.kind == "projected":
                shape = (numbers.shape[-1],), (c.projection,)
                seen.append(Linear(*shape, ("vocab", None), bias=False, name=name)(shares))
            else:
                seen += [shares, jnp.clip(numbers, *GUMBEL_RANGE)]
        x = jnp.concatenate(seen, axis=-1)
        up = Linear((x.shape[-1],), (c.hidden_dim,), (None, "mlp"), dtype=self.dtype, name="up")
        down = Linear(
            (c.hidden_dim,), (self.dim,), ("mlp", "embed"), zero=True, dtype=self.dtype, name="down"
        )
        return down(jax.nn.gelu(up(x), approximate=True))


def order_features(order: PerToken, masked: Positions) -> jax.Array:
    """What is seen of the order: sines of each position's number, and of its rank among those still masked.

    Args:
      order: `[batch, length]` float32 in [0, 1).
      masked: `[batch, length]` bool.

    Returns:
      `[batch, length, features]` float32.
    """
    waiting = jnp.where(masked, order, -1.0)
    rank = jnp.argsort(jnp.argsort(-waiting, axis=-1), axis=-1).astype(jnp.float32)
    octaves = jnp.pi * 2.0 ** jnp.arange(OCTAVES, dtype=jnp.float32)
    angles = jnp.stack([order, rank / order.shape[-1]], axis=-1)[..., None] * octaves
    angles = angles.reshape(*order.shape, 2 * OCTAVES)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
