"""What every loaded model has: parameters, perhaps a tokenizer, and facts."""

import dataclasses
from typing import Any

from sdtt_jax.data import Tokenizer
from sdtt_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Loaded:
    """A network's parameters and what came with them.

    Attributes:
      params: parameters, a nested dict.
      tokenizer: text to ids and back; None for a published model whose vocabulary is not GPT-2's.
      facts: what was stored beside the parameters (stage, round, dt, …), and `path`.
    """

    params: Any = dataclasses.field(repr=False)
    tokenizer: Tokenizer | None = dataclasses.field(repr=False)
    facts: dict[str, Any]

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, where text is asked for.

        Raises:
          CheckpointError: there is none.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.facts['path']} comes without a tokenizer: its vocabulary is not GPT-2's, so that it "
                "has tokens and no text."
            )
        return self.tokenizer
