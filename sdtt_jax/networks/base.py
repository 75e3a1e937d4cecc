"""What every network here is: pure functions of parameters, split before the head."""

import abc
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from sdtt_jax.networks.config import TransformerConfig
from sdtt_jax.typing import Key, Logits, Params

# The name of the collection of adapters (`networks.lora`), and where they stand in the parameters' tree.
ADAPTERS = "adapters"


@dataclasses.dataclass(frozen=True)
class Network(abc.ABC):
    """A network as pure functions of its parameters (plain nested dicts).

    Attributes:
      config: sizes; vocabulary and length must be set.
      head: the name of the submodule whose parameters `logits` reads.
    """

    config: TransformerConfig
    head: ClassVar[str] = "head"

    def __post_init__(self) -> None:
        self.config.check_filled()

    @property
    def mask_id(self) -> int:
        return self.config.mask_id

    @property
    def padded_vocab(self) -> int:
        return self.config.padded_vocab

    @property
    @abc.abstractmethod
    def _module(self) -> nn.Module:
        """The Linen module; `hidden` and `logits` are two of its methods."""

    @abc.abstractmethod
    def init(self, key: Key) -> Params:
        """Fresh parameters, each leaf boxed with its logical axes (`sdtt_jax.unbox` removes them)."""

    def head_params(self, params: Params) -> Params:
        """The part of `params` that `logits` reads, and all that it needs."""
        return {self.head: params[self.head]}

    def logits(self, params: Params, hidden: jax.Array) -> Logits:
        """Logits, with the columns of the padding at `NEG_INFINITY`.

        Args:
          params: all parameters, or what `head_params` returned.
          hidden: `[..., embed]`, final hidden states.

        Returns:
          `[..., padded_vocab]` float32.
        """
        logits: Any = self._apply(params, hidden, method="logits")
        return logits

    def _apply(self, params: Params, *args: Any, method: str) -> Any:
        """A method of the module, with parameters that may have adapters among them."""
        return self._module.apply(variables(params), *args, method=method)


def variables(params: Params) -> dict[str, Params]:
    """Parameters as Linen takes them, adapters being a collection of their own."""
    own = {name: part for name, part in params.items() if name != ADAPTERS}
    return {"params": own} | ({ADAPTERS: params[ADAPTERS]} if ADAPTERS in params else {})
