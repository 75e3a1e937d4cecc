"""Processes many rows in batches of one compiled size, on the mesh of the parameters if there is one.

Everything that samples or scores many texts goes through `batched`, so that a key gives the same texts to
every caller: batch i is drawn with `fold_in(key, i)`.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.config import whole
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import context_of, full_batch, mesh_if_any
from sdtt_jax.parallel.placement import place_batch
from sdtt_jax.parallel.processes import to_host

BatchFunction = Callable[[Any, jax.Array, Any], Any]


class Written(NamedTuple):
    """Texts that one of a model's `batches` has written."""

    tokens: Any  # `[rows, length]` int32
    nfe: Any  # `[rows]` int32, network calls of the batch that each row was part of


def unmasked(rows: np.ndarray, mask_id: int) -> np.ndarray:
    """A text in which nothing is masked, `[length]` int32, to fill batches of `rows: [B, length]`.

    No decoder has anything to do for it. Repeats would draw their own noise and cost network calls that are
    counted as those of the batch.
    """
    return np.full(rows.shape[1], int(mask_id == 0), np.int32)


def batched(
    function: BatchFunction, params: Any, rows: Any, batch_size: int, filler: Any = None
) -> list[Callable[[], Any]]:
    """Splits work into batches: functions without arguments, each of which computes one.

    Args:
      function: a compiled function or a wrapper of one; `function(params, index, batch)` gives a tree of
        `[rows, ...]`.
      params: parameters, on a mesh or on one device.
      rows: a tree of NumPy arrays `[rows, ...]`.
      batch_size: rows at once, at most. Where the mesh splits a batch into pieces of which this is no
        multiple, more are computed in addition: which rows a batch holds does not depend on the mesh.
      filler: what these are, and those that fill up the last batch: a tree of `[...]`; None: repeats.

    Returns:
      The batches. Each gives a tree of NumPy arrays `[rows, ...]`, floats widened to float64, and raises
      KeyboardInterrupt if one of several processes was asked to stop (SIGTERM), and ConfigError if not all
      of them hold the same rows.

    Raises:
      ConfigError: `batch_size` is not a positive whole number.
    """
    whole(1, batch_size=batch_size)
    count = len(jax.tree.leaves(rows)[0])
    size = min(batch_size, count)
    computed = full_batch(size, mesh_if_any(params))

    taken = (_take(rows, start, start + size) for start in range(0, count, size))
    return [
        functools.partial(_run, function, params, index, batch, computed, filler)
        for index, batch in enumerate(taken)
    ]


def map_batches(function: BatchFunction, params: Any, rows: Any, batch_size: int) -> Any:
    """Computes all batches of `batched`, which has the same arguments, and concatenates the results."""
    return join([batch() for batch in batched(function, params, rows, batch_size)])


def even_offsets(count: int, batch_size: int) -> np.ndarray:
    """Where each row lies on an even grid over its batch: j / n for row j of n, `[count]` float32.

    Args:
      count: rows.
      batch_size: as for `batched`, with its error. Rows that only fill up a batch repeat others' places, so
        that neither they nor the mesh change the grid.
    """
    whole(1, batch_size=batch_size)
    starts = range(0, count, batch_size)
    sizes = [min(batch_size, count - start) for start in starts]
    return np.concatenate([np.arange(size, dtype=np.float32) / size for size in sizes])


def join(results: list[Any]) -> Any:
    """Concatenates trees of `[rows, ...]`."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _run(
    function: BatchFunction, params: Any, index: int, batch: Any, size: int, filler: Any
) -> Any:
    processes.stop_if_preempted()
    mesh = mesh_if_any(params)
    count = len(jax.tree.leaves(batch)[0])
    # A batch is filled up with rows that are dropped again, so that one size is compiled.
    filled = jax.tree.map(lambda x: np.resize(x, (size, *x.shape[1:])), batch)
    if filler is not None:
        for array, row in zip(jax.tree.leaves(filled), jax.tree.leaves(filler), strict=True):
            array[count:] = row
    if mesh is not None and mesh.is_multi_process:
        processes.require_same(
            "The texts",
            {"batch": index, "rows": count, "digest": params_digest(filled)},
            "each process reads texts, prompts and tasks for itself; give all hosts the same files",
        )
    with context_of(params):
        placed = jax.device_put(filled) if mesh is None else place_batch(filled, mesh)
        out = function(params, jax.device_put(np.int32(index)), placed)
    return _take(jax.tree.map(_host, out), 0, count)


def _take(rows: Any, start: int, stop: int) -> Any:
    return jax.tree.map(operator.itemgetter(slice(start, stop)), rows)


def _host(array: jax.Array) -> np.ndarray:
    host = to_host(array)
    return host.astype(np.float64) if np.issubdtype(host.dtype, np.floating) else host
