"""A denoiser that stops at the layer where its states have settled (after CALM, arXiv 2207.07061).

The one head reads every layer's states, behind its norm. Trained exits are a linear map of each layer before
that norm, which takes its states to where the last layer's are (the tuned lens, arXiv 2303.08112).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import whole
from sdtt_jax.networks.attention import rotary_tables
from sdtt_jax.networks.base import Wrapped, variables
from sdtt_jax.networks.config import TransformerConfig
from sdtt_jax.networks.denoiser import Denoiser, DenoiserBlock
from sdtt_jax.typing import Hidden, Params, PerSequence, Segments, Tokens

# Where trained exits stand among a network's parameters; without them the states themselves are read.
EXITS = "exits"


@dataclasses.dataclass(frozen=True)
class Exiting(Wrapped):
    """`network`, each sequence of which leaves at the first layer whose states have settled.

    A layer's states go through the norm before the head, and so the one head reads them. They have settled
    where, on average over the masked positions, they have a cosine of at least `threshold` with those of the
    layer before. That costs a norm, and with trained exits a map of a twelfth of a layer's FLOPs; to ask the
    head itself would cost as much as several layers.
    """

    network: Denoiser  # the denoiser, without adapters
    # Above 1 nothing leaves early. `evaluation.exits.calibrate` finds one that keeps a promise.
    threshold: float
    least: int = 2  # layers that every sequence goes through

    def __post_init__(self) -> None:
        whole(1, self, "least")

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        *,
        segments: Segments | None = None,
    ) -> Hidden:
        """As the network's, of the layer at which each sequence leaves."""
        return self.leave(params, tokens, sigma, segments=segments)[0]

    def leave(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        *,
        segments: Segments | None = None,
    ) -> tuple[Hidden, jax.Array]:
        """Hidden states `[batch, length, embed]`, and the layers each sequence went through, `[batch]`."""
        layer, read, x = _parts(self.network, params, tokens, sigma, segments)
        masked = tokens == self.mask_id

        def going(carry: Any) -> jax.Array:
            return (carry[0] < self.config.num_layers) & ~carry[-1].all()

        def deeper(carry: Any) -> Any:
            index, x, normed, left, gone = carry
            after = jnp.where(gone[:, None, None], x, layer(index, x))
            new = jnp.where(gone[:, None, None], normed, read(index, after))
            settled = (saturation(normed, new, masked) >= self.threshold) & (
                index + 1 >= self.least
            )
            return index + 1, after, new, left + ~gone, gone | settled

        nobody = jnp.zeros(len(tokens), bool)
        carry = jnp.int32(0), x, read(None, x), jnp.zeros(len(tokens), jnp.int32), nobody
        _, _, normed, left, _ = jax.lax.while_loop(going, deeper, carry)
        return normed, left


def untrained_exits(config: TransformerConfig) -> Params:
    """Exits that add nothing to the states: `kernel` `[layers, embed, embed]`, `bias` `[layers, embed]`."""
    layers, embed = config.num_layers, config.embed_dim
    return {"kernel": jnp.zeros((layers, embed, embed)), "bias": jnp.zeros((layers, embed))}


def saturation(before: Hidden, after: Hidden, masked: jax.Array) -> PerSequence:
    """Mean cosine between the states of two layers at masked positions: `[batch]` float32; 1 without any.

    Args:
      before, after: `[batch, length, embed]`.
      masked: `[batch, length]` bool.
    """
    x, y = before.astype(jnp.float32), after.astype(jnp.float32)
    norms = jnp.sqrt(jnp.square(x).sum(axis=-1) * jnp.square(y).sum(axis=-1))
    cosine = (x * y).sum(axis=-1) / jnp.maximum(norms, 1e-30)
    count = masked.sum(axis=-1)
    mean = jnp.where(masked, cosine, 0.0).sum(axis=-1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, 1.0)


def layer_by_layer(
    network: Denoiser, params: Params, tokens: Tokens, sigma: PerSequence | None = None
) -> tuple[Hidden, jax.Array]:
    """What the head would read at every layer, and how far it has settled there.

    Args:
      network, params: the denoiser; with trained exits, differentiable with respect to them.
      tokens: `[batch, length]` int32.
      sigma: `[batch]` float32, total noise.

    Returns:
      `[layers, batch, length, embed]`, and `saturation` of each layer, `[layers, batch]` float32.
    """
    layer, read, x = _parts(network, params, tokens, sigma, None)
    masked = tokens == network.mask_id

    def deeper(carry: Any, index: jax.Array) -> Any:
        x, normed = carry
        after = layer(index, x)
        new = read(index, after)
        return (after, new), (new, saturation(normed, new, masked))

    _, found = jax.lax.scan(deeper, (x, read(None, x)), jnp.arange(network.config.num_layers))
    states, settled = found
    return states, settled


def _parts(
    network: Denoiser, params: Params, tokens: Tokens, sigma: Any, segments: Segments | None
) -> tuple[Any, Any, jax.Array]:
    """`layer(index, x)`, `read(index, x)`, and what goes into the first layer.

    `read` gives what the head reads of the states behind a layer, or of what goes into the first one (None).
    """
    config, exits = dataclasses.replace(network.config, remat="none"), params.get(EXITS)
    module = network._module
    apply = functools.partial(module.apply, variables(params))
    told = network._sigma_seen(sigma)
    x, condition = apply(tokens, told, method=lambda m, t, s: (m.embed(t), m.condition(s)))
    shared = (*rotary_tables(jnp.arange(tokens.shape[1]), config.head_dim), segments)

    def layer(index: jax.Array, x: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda leaf: leaf[index], params["blocks"])
        after: jax.Array = DenoiserBlock(config).apply({"params": own}, x, condition, shared)[0]
        return after

    def read(index: jax.Array | None, x: jax.Array) -> Any:
        if exits is not None and index is not None:
            own = jax.tree.map(lambda leaf: leaf[index].astype(x.dtype), exits)
            x = x + x @ own["kernel"] + own["bias"]
        normed: Any = apply(x, condition, method=lambda m, x, c: m.final(x, c))
        return normed

    return layer, read, x
