"""Work through many texts in batches of one compiled size, on whatever mesh the parameters live."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.parallel.mesh import full_batch, mesh_if_any, use_mesh
from sdtt_jax.parallel.placement import place_batch
from sdtt_jax.parallel.processes import stop_if_preempted, to_host

BatchFunction = Callable[[Any, jax.Array, Any], Any]


def batch_rows(params: Any, batch_size: int) -> int:
    """`batch_size`, up to a multiple of what the mesh of `params` splits batches into."""
    return full_batch(batch_size, mesh_if_any(params))


def batches(rows: Any, size: int) -> Iterator[Any]:
    """A tree of `[rows, ...]` in pieces of `size` rows; the last may have fewer."""
    count = len(jax.tree.leaves(rows)[0])
    for start in range(0, count, size):
        yield jax.tree.map(operator.itemgetter(slice(start, start + size)), rows)


def run_batch(function: BatchFunction, params: Any, index: int, batch: Any, size: int) -> Any:
    """`function(params, index, batch)` at the compiled size.

    Args:
      function: compiled; its results have the batch as their leading axis.
      params: parameters, on a mesh or on one device.
      index: of the batch.
      batch: a tree of NumPy arrays `[rows, ...]`; fewer than `size` rows are filled up with repeats,
        which are dropped again.
      size: from `batch_rows`.

    Returns:
      A tree of NumPy arrays `[rows, ...]`, floats widened to float64.

    Raises:
      KeyboardInterrupt: one of several processes was asked to stop (SIGTERM).
    """
    stop_if_preempted()
    mesh = mesh_if_any(params)
    count = len(jax.tree.leaves(batch)[0])
    filled = jax.tree.map(lambda x: np.resize(x, (size, *x.shape[1:])), batch)
    if mesh is None:
        out = function(params, jnp.int32(index), jax.tree.map(jnp.asarray, filled))
    else:
        with use_mesh(mesh):
            out = function(params, jnp.int32(index), place_batch(filled, mesh))
    return jax.tree.map(operator.itemgetter(slice(count)), jax.tree.map(_host, out))


def map_batches(function: BatchFunction, params: Any, rows: Any, batch_size: int) -> Any:
    """`run_batch` over all rows, its results laid end to end."""
    size = batch_rows(params, batch_size)
    results = [
        run_batch(function, params, index, batch, size)
        for index, batch in enumerate(batches(rows, size))
    ]
    return join(results)


def join(results: list[Any]) -> Any:
    """Trees of `[rows, ...]` laid end to end."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _host(array: jax.Array) -> np.ndarray:
    host = to_host(array)
    return host.astype(np.float64) if np.issubdtype(host.dtype, np.floating) else host
