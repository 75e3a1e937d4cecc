"""Nearest neighbours for a denoiser: the tokens at similar hidden states (kNN-LM, arXiv 1911.00172).

A `Datastore` holds the hidden states of masked positions of real text, and the true tokens there. A
`Retrieving` denoiser mixes the network's prediction with the tokens of the nearest states. For samplers and
bounds it is a denoiser like any other, whose parameters are the network's and the datastore.
"""

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.config import positive, whole, within
from sdtt_jax.interface import Wrapped
from sdtt_jax.ops.categorical import NEG_INFINITY
from sdtt_jax.typing import Hidden, Logits, Params, PerSequence, Tokens


@flax.struct.dataclass
class Datastore:
    """States of masked positions and the true tokens there; a mesh may split them along the first axis."""

    keys: jax.Array  # `[entries, embed]`
    tokens: jax.Array  # `[entries]` int32
    valid: jax.Array  # `[entries]` bool; entries with False are never found


@dataclasses.dataclass(frozen=True)
class Retrieving(Wrapped):
    """`network` with a datastore of its states; parameters: `{"network": …, "store": Datastore}`."""

    linear_head: ClassVar[bool] = False  # logits are no linear map of hidden states

    neighbours: int = 16  # number of nearest entries that are mixed in; all if there are fewer
    share: float = 0.1  # their share in the mixture; 0 is the network alone
    # Their weights are proportional to exp(-squared distance / temperature).
    temperature: float = 1.0
    # Share of the nearest entries that the search finds on a TPU; elsewhere it finds all.
    recall: float = 0.95

    def __post_init__(self) -> None:
        whole(1, self, "neighbours")
        within("[0, 1)", self, "share")
        within("(0, 1]", self, "recall")
        positive(self, "temperature")

    def hidden(self, params: Params, tokens: Tokens, sigma: PerSequence | None = None) -> Hidden:
        """The network's hidden states."""
        return self.network.hidden(params["network"], tokens, sigma)

    def head_params(self, params: Params) -> Params:
        """The network's head parameters, and the datastore."""
        return params | {"network": self.network.head_params(params["network"])}

    def logits(self, params: Params, hidden: jax.Array) -> Logits:
        """Log-probabilities of the mixture, those of MASK and padding at `NEG_INFINITY`."""
        own = self.network.logits(params["network"], hidden)[..., : self.mask_id]
        log_own, near = jax.nn.log_softmax(own), self._near(params["store"], hidden)
        mixed = jnp.logaddexp(
            log_own + jnp.log1p(-self.share),
            jnp.log(jnp.maximum(near * self.share, 1e-37)) if self.share else -jnp.inf,
        )
        rest = [(0, 0)] * (mixed.ndim - 1) + [(0, self.padded_vocab - self.mask_id)]
        return jnp.pad(mixed, rest, constant_values=NEG_INFINITY)

    def _near(self, store: Datastore, hidden: jax.Array) -> jax.Array:
        """What the neighbours of states `[..., embed]` predict: `[..., mask_id]`, with a sum of one."""
        query = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
        keys = store.keys.astype(jnp.float32)
        closeness = 2 * query @ keys.T - jnp.square(keys).sum(axis=-1)
        closeness = jnp.where(store.valid, closeness, NEG_INFINITY)
        count = min(self.neighbours, len(keys))
        closest, places = jax.lax.approx_max_k(closeness, count, recall_target=self.recall)
        # A low temperature takes differences from the nearest beyond float32, but not the nearest itself.
        farther = closest - closest.max(axis=-1, keepdims=True)
        weight = jax.nn.softmax(farther / self.temperature, axis=-1)
        rows = jnp.arange(len(query))[:, None]
        said = jnp.zeros((len(query), self.mask_id), jnp.float32)
        said = said.at[rows, store.tokens[places]].add(weight)
        return said.reshape(*hidden.shape[:-1], self.mask_id)
