"""The interface between networks and algorithms: a denoiser, and a denoiser with its noise schedule.

Samplers, losses, targets and measures are functions of a `MaskedDiffusion` and of parameters. All they know
of a network is the five names of `DenoiserLike`.
"""

import dataclasses
from typing import Any, Protocol

import jax

from sdtt_jax.config import instance, require
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.ops.noise import Noise
from sdtt_jax.ops.sequences import Arrangement
from sdtt_jax.typing import Hidden, Logits, Params, PerSequence, Positions, Tokens, Tree


class DenoiserLike(Protocol):
    """A network that predicts clean tokens, as two pure functions of its parameters.

    It is split before its last linear map: hidden states `[batch, length, embed]` are small and are
    computed for every position, logits `[..., padded_vocab]` are large and are computed only at the
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

    def head_params(self, params: Params) -> Params:
        """The part of `params` that `logits` reads, so that losses carry nothing else."""

    def logits(self, params: Params, hidden: jax.Array) -> Logits:
        """Unnormalised log-probabilities of the clean token.

        Args:
          params: all parameters, or what `head_params` returned.
          hidden: `[..., embed]`, from `hidden`.

        Returns:
          `[..., padded_vocab]` float32.
        """


# The attributes that a wrapper takes over from the network inside it.
PASSED_ON = (
    "mask_id",
    "padded_vocab",
    "head_params",
    "logits",
    "noise_kind",
    "config",
    "linear_head",
)


@dataclasses.dataclass(frozen=True, eq=False)
class ForOneBatch:
    """A network around another, with its parameters and head, that holds arrays of one batch."""

    denoiser: DenoiserLike  # the other network

    def __getattr__(self, name: str) -> Any:
        # Methods that compute from tokens, such as a cache's, are missing: they would not use the arrays.
        if name in PASSED_ON:
            return getattr(self.denoiser, name)
        raise AttributeError(f"A network for one batch ({type(self).__name__}) has no {name}.")


def innermost(network: Any) -> Any:
    """The network inside all wrappers of the class `ForOneBatch`; or `network` itself."""
    while isinstance(network, ForOneBatch):
        network = network.denoiser
    return network


@dataclasses.dataclass(frozen=True, eq=False)
class WithInputs(ForOneBatch):
    """A denoiser with further inputs for one batch, besides the tokens."""

    inputs: dict[str, jax.Array]  # further arguments of its `hidden`, by name: `segments`, `edges`

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        *more: Any,
        **inputs: jax.Array,
    ) -> Hidden:
        """The network's own `hidden`; `more` and `inputs` are its further arguments, such as noise."""
        network: Any = self.denoiser
        hidden: Hidden = network.hidden(params, tokens, sigma, *more, **inputs, **self.inputs)
        return hidden

    def layer_states(self, params: Params, tokens: Tokens, layer: int) -> Hidden:
        """The network's own `layer_states`."""
        network: Any = self.denoiser
        states: Hidden = network.layer_states(params, tokens, layer, **self.inputs)
        return states


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion:
    """A masked diffusion model without its parameters: network and noise schedule.

    Hashable and compared by value: two instances made from equal configs are the same static argument to
    `jit`, which then compiles once.

    Attributes:
      denoiser: the network, as pure functions.
      schedule: the noise schedule.
      arrangement: the roles of the positions of one batch (texts side by side, prompts, padding), set by
        `within` while tracing; None: all positions see each other, may be masked, and count.

    Examples:
      >>> import sdtt_jax
      >>> config = sdtt_jax.DenoiserConfig(5, length=8, num_layers=1, embed_dim=16, num_heads=2)
      >>> diffusion = MaskedDiffusion(sdtt_jax.Denoiser(config), sdtt_jax.make_schedule())
      >>> diffusion.mask_id
      5
    """

    denoiser: DenoiserLike
    schedule: Schedule
    arrangement: Arrangement | None = None

    def __post_init__(self) -> None:
        require(
            hasattr(self.denoiser, "mask_id"),
            f"denoiser must be a network such as Denoiser(config), not {self.denoiser!r:.60}.",
        )
        instance(Schedule, schedule=self.schedule)

    def within(self, arrangement: Arrangement | None) -> "MaskedDiffusion":
        """The same model for one batch, whose arrangement losses, targets and samplers then respect.

        It holds arrays, so it cannot be a static argument of `jit`: make it inside the function.

        Args:
          arrangement: from `ops.sequences.arrange`; None changes nothing.
        """
        if arrangement is None:
            return self
        network: Any = WithInputs(self.denoiser, {"segments": arrangement.segments})
        return MaskedDiffusion(network, self.schedule, arrangement)

    @property
    def free(self) -> Positions | None:
        """Positions of the batch that may be masked, and that count; None: all."""
        return None if self.arrangement is None else self.arrangement.free

    @property
    def mask_id(self) -> int:
        """The id of MASK."""
        return self.denoiser.mask_id

    @property
    def noise_kind(self) -> str | None:
        """The kind of noise that the network sees at masked positions (`ops.noise`); None if it sees none."""
        kind: str | None = getattr(self.denoiser, "noise_kind", None)
        return kind

    @property
    def position_free(self) -> bool:
        """Whether hidden states are alike at all positions of a text in which every token is MASK."""
        return bool(getattr(self.denoiser, "position_free", False)) and self.noise_kind is None

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        noise: Tree = None,
    ) -> Hidden:
        """The network's hidden states. The noise is passed on only to a network that sees noise.

        Args:
          params: the network's parameters.
          tokens: `[batch, length]` int32, MASK included.
          sigma: `[batch]` float32, total noise of the process.
          noise: of `[batch, length]` positions, or what `shown` returned for it.
        """
        if self.noise_kind is None:
            return self.denoiser.hidden(params, tokens, sigma)
        network: Any = self.denoiser
        hidden: Hidden = network.hidden(params, tokens, sigma, noise)
        return hidden

    def shown(self, params: Params, noise: Noise | None) -> Tree:
        """What the network computes from noise once for all calls; `hidden` takes it as `noise`.

        Args:
          params: the network's parameters.
          noise: of `[batch, length]` positions; returned unchanged where the network has nothing to prepare.
        """
        read = getattr(self.denoiser, "shown", None)
        return noise if noise is None or read is None else read(params, noise)
