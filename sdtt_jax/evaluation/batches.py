"""Work through many texts in batches of one compiled size, on whatever mesh the parameters live."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from sdtt_jax.processes import to_host
from sdtt_jax.training import sharding as sh


def batch_rows(params: Any, batch_size: int) -> int:
    """`batch_size`, up to a multiple of what the mesh of `params` splits batches into."""
    mesh = mesh_of(params)
    pieces = math.prod(mesh.shape[axis] for axis in sh.BATCH_AXES) if mesh is not None else 1
    return -(-batch_size // pieces) * pieces


def map_batches(
    function: Callable[[Any, jax.Array, Any], Any],
    params: Any,
    rows: Any,
    batch_size: int,
) -> Any:
    """`function(params, batch index, batch)` over all rows.

    Args:
      function: compiled; its results have the batch as their leading axis.
      params: parameters, on a mesh or on one device.
      rows: `[rows, ...]`, or a tree of such arrays; the last batch is filled up with repeats, which are
        dropped again.
      batch_size: rows at once.

    Returns:
      The results, laid end to end: a tree of NumPy arrays `[rows, ...]`, floats widened to float64.
    """
    size = batch_rows(params, batch_size)
    mesh = mesh_of(params)
    results = []
    total = len(jax.tree.leaves(rows)[0])
    for index, start in enumerate(range(0, total, size)):
        filled = jax.tree.map(functools.partial(_filled, start, size), rows)
        if mesh is None:
            out = function(params, jnp.int32(index), jax.tree.map(jnp.asarray, filled))
        else:
            with sh.use_mesh(mesh):
                out = function(params, jnp.int32(index), sh.place_batch(filled, mesh))
        whole = jax.tree.map(_host, out)
        results.append(jax.tree.map(operator.itemgetter(slice(total - start)), whole))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _filled(start: int, size: int, rows: np.ndarray) -> np.ndarray:
    batch = rows[start : start + size]
    return np.resize(batch, (size, *batch.shape[1:])) if len(batch) < size else batch


def mesh_of(params: Any) -> Any:
    """The mesh that `params` are placed on, or None."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def _host(array: jax.Array) -> np.ndarray:
    host = to_host(array)
    return host.astype(np.float64) if np.issubdtype(host.dtype, np.floating) else host
