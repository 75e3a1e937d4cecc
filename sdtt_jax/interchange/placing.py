"""Reads the parameters of a published model, each placed as soon as it is read."""

import hashlib

import jax
import numpy as np
from jax.sharding import Mesh

from sdtt_jax.interchange.adapters import network_shardings
from sdtt_jax.interchange.layouts import Published, published_params
from sdtt_jax.networks.base import Network
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.placement import place as place_pieces
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Params


def placed_params(model: Published, network: Network, mesh: Mesh | None, name: str) -> Params:
    """The parameters of a published model, float32, on the first device or spread over a mesh.

    They are spread by the rules of training. The `network` is made from the model's config; errors call the
    model by `name`.

    Raises:
      CheckpointError: as of `published_params`.
      ConfigError: on all processes of the mesh: they have read different values.
    """
    places = {} if mesh is None else flat_leaves(network_shardings(network, mesh))
    several = mesh is not None and mesh.is_multi_process
    digests: dict[str, str] = {}

    def place(at: str, value: np.ndarray) -> jax.Array:
        if several:
            digests[at] = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        # Every process reads the file and takes the pieces of its own devices; `device_put` would first send
        # whole arrays between the processes to compare them.
        placed = place_pieces(value, places[at]) if places else jax.device_put(value)
        # Waiting keeps at most one parameter in memory twice.
        return jax.block_until_ready(placed)

    params = published_params(model, place)
    if several:
        processes.require_same(
            f"The model {name}",
            digests,
            "copy the same files to all hosts, or name a revision of the hub, OWNER/NAME@REVISION",
        )
    return params
