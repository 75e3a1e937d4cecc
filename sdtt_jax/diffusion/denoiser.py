"""A denoiser with its noise schedule, and a denoiser that is given more than tokens.

Samplers, losses, targets and measures are functions of a `MaskedDiffusion` and of parameters. All they know
of a network is the five names of `DenoiserLike`.
"""

import dataclasses
from typing import Any

import jax

from sdtt_jax.config import instance, require
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.interface import DenoiserLike, Wrapped
from sdtt_jax.ops.noise import Noise
from sdtt_jax.ops.sequences import Arrangement
from sdtt_jax.typing import Hidden, Params, PerSequence, Positions, Tokens, Tree


@dataclasses.dataclass(frozen=True, eq=False)
class WithInputs(Wrapped):
    """A denoiser with further inputs for one batch, besides the tokens."""

    inputs: dict[str, jax.Array]  # further arguments of its `hidden`, by name: `segments`, `edges`

    @property
    def noise_kind(self) -> str | None:
        """The kind of noise that the network sees, which `hidden` passes on; None if it sees none."""
        return getattr(self.network, "noise_kind", None)

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        *more: Any,
        **inputs: jax.Array,
    ) -> Hidden:
        """The network's own `hidden`; `more` and `inputs` are its further arguments, such as noise."""
        return self.network.hidden(params, tokens, sigma, *more, **inputs, **self.inputs)

    def layer_states(self, params: Params, tokens: Tokens, layer: int) -> Hidden:
        """The network's own `layer_states`."""
        return self.network.layer_states(params, tokens, layer, **self.inputs)


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
