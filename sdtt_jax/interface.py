"""The interface between networks and algorithms: what a denoiser is, and one around another.

Networks and what computes with them do not import each other; both may import this.
"""

import dataclasses
from typing import Any, Protocol

import jax

from sdtt_jax.typing import Hidden, Logits, Params, PerSequence, Tokens


class WithHead(Protocol):
    """The last linear map of a network. Both functions also take what `head_params` returned."""

    def head_params(self, params: Params) -> Params:
        """The part of `params` that `logits` reads, so that losses carry nothing else."""

    def logits(self, params: Params, hidden: jax.Array) -> Logits:
        """Unnormalised log-probabilities of the (clean) token.

        Args:
          params: all parameters, or what `head_params` returned.
          hidden: `[..., embed]`, from `hidden`.

        Returns:
          `[..., padded_vocab]` float32.
        """


class DenoiserLike(WithHead, Protocol):
    """A network that predicts clean tokens, as two pure functions of its parameters.

    It is split before its last linear map (`WithHead`): hidden states `[batch, length, embed]` are small and
    are computed for every position, logits `[..., padded_vocab]` are large and are computed only at the
    positions that a loss or a sampler asks for.

    Implementations are hashable and compare by value, so that they can be static arguments of `jit`.
    """

    @property
    def mask_id(self) -> int:
        """The id of MASK, which follows the vocabulary: tokens are `0 … mask_id - 1`."""

    @property
    def padded_vocab(self) -> int:
        """Columns of `logits`: vocabulary, MASK, and padding that is impossible (very low logits)."""

    def hidden(self, params: Params, tokens: Tokens, sigma: PerSequence | None = None) -> Hidden:
        """Final hidden states.

        Args:
          params: the network's parameters.
          tokens: `[batch, length]` int32, MASK included.
          sigma: `[batch]` float32, total noise; only a time-conditioned network reads it. None is 0.

        Returns:
          `[batch, length, embed]`, in the network's compute dtype.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapped:
    """A denoiser with the parameters and the head of `network`, and hidden states of its own.

    A subclass has `hidden`. What else computes from tokens, such as `decode`, is not passed on: it would not
    be of these hidden states. A subclass of plain numbers compares by value, as a `DenoiserLike` does; one
    that holds arrays of a batch says `eq=False`, and is made within `jit`.
    """

    network: Any  # a `DenoiserLike`

    @property
    def config(self) -> Any:
        """The network's config."""
        return self.network.config

    @property
    def mask_id(self) -> int:
        """The id of MASK."""
        return self.network.mask_id

    @property
    def padded_vocab(self) -> int:
        """Columns of the logits."""
        return self.network.padded_vocab

    @property
    def linear_head(self) -> bool:
        """Whether logits are a linear map of hidden states."""
        return getattr(self.network, "linear_head", True)

    def head_params(self, params: Params) -> Params:
        """The part of `params` that `logits` reads."""
        return self.network.head_params(params)

    def logits(self, params: Params, hidden: jax.Array) -> Logits:
        """The network's logits."""
        return self.network.logits(params, hidden)
