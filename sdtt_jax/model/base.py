"""What every loaded model has: parameters, perhaps a tokenizer, and facts."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from sdtt_jax.data import Tokenizer
from sdtt_jax.errors import CheckpointError
from sdtt_jax.parallel.mesh import batch_pieces, mesh_if_any, use_mesh
from sdtt_jax.parallel.placement import place_batch, place_whole


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
    def mesh(self) -> Mesh | None:
        """The mesh that the parameters are spread over, if any."""
        return mesh_if_any(self.params)

    def on_mesh(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the network computes: its mesh with the rules of training, or nothing."""
        return contextlib.nullcontext() if self.mesh is None else use_mesh(self.mesh)

    def placed(self, rows: ArrayLike) -> jax.Array:
        """`rows: [B, …]` split over the mesh if B divides into its parts, or else whole on every device."""
        if self.mesh is None:
            return jnp.asarray(rows)
        host = np.asarray(rows)
        whole = len(host) % batch_pieces(self.mesh) != 0
        place = place_whole if whole else place_batch
        array: jax.Array = place(host, self.mesh)
        return array

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
