"""A denoiser with early exit: it stops at the layer whose states hardly change (CALM, arXiv 2207.07061).

The one head reads every layer's states through the final norm. Each layer's trained exit has two linear maps:
one before that norm, which takes the states to where the last layer's are (the tuned lens, arXiv 2303.08112),
and one after it, which predicts how well they agree with the last layer's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import whole, within
from sdtt_jax.interface import Wrapped
from sdtt_jax.networks.config import TransformerConfig
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.typing import Hidden, Params, PerSequence, Segments, Tokens

# The key of trained exits among a network's parameters; without them the head reads the states themselves.
EXIT_PARAMS = "exits"


@dataclasses.dataclass(frozen=True)
class Exiting(Wrapped):
    """Early exit: a sequence leaves `network` at the first layer whose score reaches `threshold`.

    The score is the mean over the masked positions of the cosine with the states of the layer before or, with
    trained exits, of the predicted agreement with those of the last layer. Every layer's states go through
    the norm before the head, so the same head reads them. The score costs a norm, and a trained map a twelfth
    of a layer's FLOPs; applying the head itself would cost as much as several layers.
    """

    network: Denoiser  # the denoiser; its parameters may include adapters
    # Above 1 no sequence leaves early. `evaluation.exits.calibrate` finds a threshold with a guarantee.
    threshold: float
    least: int = 2  # layers that every sequence goes through

    def __post_init__(self) -> None:
        whole(1, self, "least")
        within("(-inf, inf)", self, "threshold")

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        *,
        segments: Segments | None = None,
    ) -> Hidden:
        """The network's hidden states, from the layer at which each sequence leaves."""
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
        layer, read, settling, x = _parts(self.network, params, tokens, sigma, segments)

        def going(carry: Any) -> jax.Array:
            return (carry[0] < self.config.num_layers) & ~carry[-1].all()

        def deeper(carry: Any) -> Any:
            index, x, normed, left, gone = carry
            after = jnp.where(gone[:, None, None], x, layer(index, x))
            new = jnp.where(gone[:, None, None], normed, read(index, after))
            settled = (settling(index, normed, new) >= self.threshold) & (index + 1 >= self.least)
            return index + 1, after, new, left + ~gone, gone | settled

        nobody = jnp.zeros(len(tokens), bool)
        carry = jnp.int32(0), x, read(None, x), jnp.zeros(len(tokens), jnp.int32), nobody
        _, _, normed, left, _ = jax.lax.while_loop(going, deeper, carry)
        return normed, left


def untrained_exits(config: TransformerConfig) -> Params:
    """Exits before training, one for each layer: they change no states and predict a constant agreement.

    `kernel` `[layers, embed, embed]` and `bias` `[layers, embed]` are the maps, `agreement` `[layers, embed]`
    and `offset` `[layers]` are what `agreement_logits` reads.
    """
    layers, embed = config.num_layers, config.embed_dim
    shapes = {
        "kernel": (layers, embed, embed),
        "bias": (layers, embed),
        "agreement": (layers, embed),
        "offset": (layers,),
    }
    return {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}


def agreement_logits(exits: Params, index: jax.Array, normed: Hidden) -> jax.Array:
    """An exit's guess of how well its states agree with the last layer's, before the sigmoid into (0, 1).

    Args:
      exits: as `untrained_exits` returns them.
      index: `[]` int32, the layer.
      normed: `[batch, length, embed]`, what the head reads there.

    Returns:
      `[batch, length]` float32, trained to be the logit of exp(-KL(last layer ‖ exit)).
    """
    return normed.astype(jnp.float32) @ exits["agreement"][index] + exits["offset"][index]


def saturation(before: Hidden, after: Hidden, masked: jax.Array) -> PerSequence:
    """Mean cosine between the states of two layers at masked positions: `[batch]` float32; 1 if none is.

    Args:
      before, after: `[batch, length, embed]`.
      masked: `[batch, length]` bool.
    """
    x, y = before.astype(jnp.float32), after.astype(jnp.float32)
    norms = jnp.sqrt(jnp.square(x).sum(axis=-1) * jnp.square(y).sum(axis=-1))
    return _mean_over(masked, (x * y).sum(axis=-1) / jnp.maximum(norms, 1e-30))


def _mean_over(masked: jax.Array, values: jax.Array) -> PerSequence:
    count = masked.sum(axis=-1, dtype=jnp.float32)
    mean = jnp.where(masked, values, 0.0).sum(axis=-1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, 1.0)


def layer_by_layer(
    network: Denoiser,
    params: Params,
    tokens: Tokens,
    sigma: PerSequence | None = None,
    segments: Segments | None = None,
) -> tuple[Hidden, jax.Array]:
    """What the head would read at every layer, and the score of early exit there.

    Args:
      network, params: the denoiser; with trained exits, differentiable with respect to them.
      tokens: `[batch, length]` int32.
      sigma: `[batch]` float32, total noise.
      segments: `[batch, length]` int32, as for the network's `hidden`; None: all positions see each other.

    Returns:
      `[layers, batch, length, embed]`, and `[layers, batch]` float32, the value that is compared with a
      threshold: `saturation`, or the agreement that trained exits predict.
    """
    layer, read, settling, x = _parts(network, params, tokens, sigma, segments)

    def deeper(carry: Any, index: jax.Array) -> Any:
        x, normed = carry
        after = layer(index, x)
        new = read(index, after)
        return (after, new), (new, settling(index, normed, new))

    _, (states, settled) = jax.lax.scan(
        deeper, (x, read(None, x)), jnp.arange(network.config.num_layers, dtype=jnp.int32)
    )
    return states, settled


def _parts(
    network: Denoiser, params: Params, tokens: Tokens, sigma: Any, segments: Segments | None
) -> tuple[Any, Any, Any, jax.Array]:
    """`layer(index, x)`, `read(index, x)`, `settling(index, before, after)`, and the first layer's input.

    `read` returns what the head reads from the states after a layer, or from the first layer's input (None).
    `settling` returns the score of early exit, from what is read before and after a layer.
    """
    exits = params.get(EXIT_PARAMS)
    x, shared = network.embedded(params, tokens, sigma, segments)

    def layer(index: jax.Array, x: jax.Array) -> jax.Array:
        return network.next_states(params, index, x, shared)

    def read(index: jax.Array | None, x: jax.Array) -> Any:
        if exits is not None and index is not None:
            kernel, bias = (exits[name][index].astype(x.dtype) for name in ("kernel", "bias"))
            x = x + x @ kernel + bias
        return network.normed(params, x, shared)

    def settling(index: jax.Array, before: Hidden, after: Hidden) -> PerSequence:
        masked = tokens == network.mask_id
        if exits is None:
            return saturation(before, after, masked)
        return _mean_over(masked, jax.nn.sigmoid(agreement_logits(exits, index, after)))

    return layer, read, settling, x
