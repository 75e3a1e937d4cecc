"""Placing the parameters of a published model as they are read, by one process or by several."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from sdtt_jax.interchange.adapters import network_shardings
from sdtt_jax.networks.base import Network
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.placement import place as place_pieces
from sdtt_jax.trees import flat_leaves


@contextlib.contextmanager
def placing(
    network: Network, mesh: Mesh | None, name: str
) -> Iterator[Callable[[str, np.ndarray], jax.Array]]:
    """Yields a function that puts a parameter, given its path and value, where it belongs.

    Args:
      network: whose parameters they are.
      mesh: the devices over which they are spread by the rules of training; the first device if None.
      name: the model's, for the error message.

    Raises:
      ConfigError: at the end, on all processes of the mesh: they have read different values.
    """
    places = {} if mesh is None else flat_leaves(network_shardings(network, mesh))
    digests: dict[str, str] = {}

    def place(at: str, value: np.ndarray) -> jax.Array:
        if mesh is not None and mesh.is_multi_process:
            digests[at] = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        # Every process reads the file and takes the pieces of its own devices; `device_put` would first send
        # whole arrays between the processes to compare them.
        placed = place_pieces(value, places[at]) if places else jax.device_put(value)
        # Waiting keeps at most one parameter in memory twice.
        return jax.block_until_ready(placed)

    yield place
    if mesh is not None and mesh.is_multi_process:
        processes.require_same(
            f"The model {name}",
            digests,
            "copy the same files to all hosts, or name a revision of the hub, OWNER/NAME@REVISION",
        )
