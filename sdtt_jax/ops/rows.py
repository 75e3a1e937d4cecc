"""Work on the selected rows of a batch only, in chunks of one static shape.

A row is one position of one sequence. The rows that count (masked, or revealed by a step) are a part of
the batch, of a size that only the data know, and what is done to a row may be `[vocab]` wide. So they are
gathered and worked off `size` at a time in a loop with as many turns as it takes: exact for every count,
and no array is `[batch * length, vocab]`.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax.core import spmd
from jax.sharding import PartitionSpec

from sdtt_jax.typing import Tree

Carry = TypeVar("Carry")

# Entries of a [chunk, columns] array in float32: 2^23 are 32 MB. A chunk of it keeps the matmuls large and
# the handful of such arrays that a loss needs small beside the weights.
MAX_ENTRIES = 2**23
# But of a large batch more rows at once, or an accelerator would spend its time on reading the head and on
# adding to its gradient. A distillation step at 12 x 768 and 32 x 1024 tokens, compiled for a TPU v5e, moves
# 221 GB with 168 rows at a time and 192 GB with 512, within the same memory.
MOST_TURNS = 64
LANE = 8


def chunk_size(rows: int, columns: int, parts: int) -> int:
    """Rows per chunk: about `rows / parts`, but never more than `MAX_ENTRIES` entries.

    Args:
      rows: all rows, selected or not.
      columns: width of what is computed for each.
      parts: how finely to cut. Up to a chunk less one row is computed in vain, so many parts where few
        rows are selected.
    """
    fitting = max(LANE, MAX_ENTRIES // columns, rows // MOST_TURNS)
    wanted = max(LANE, math.ceil(rows / parts))
    size = math.ceil(min(fitting, wanted) / LANE) * LANE
    return min(size, rows)


def fold_selected(
    selected: jax.Array, size: int, body: Callable[[Carry, jax.Array], Carry], carry: Carry
) -> Carry:
    """Folds `body(carry, index)` over the selected rows, `size` of them at a time, in order.

    Args:
      selected: `[rows]` bool.
      size: rows per turn, static.
      body: is given `index: [size]` int32. The last turn's spare places hold `rows`, one past the end:
        read with `take_rows`, write with `.at[index].set(…, mode="drop")`.
      carry: what is folded.
    """
    rows = selected.shape[0]
    turns = math.ceil(rows / size)
    (index,) = jnp.nonzero(selected, size=turns * size, fill_value=rows)
    index = index.astype(jnp.int32).reshape(turns, size)
    needed = (selected.sum(dtype=jnp.int32) + size - 1) // size
    shards = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if shards:
        # As many turns on every device: with tensor parallelism the compiler puts collectives into the
        # loop, and with a permutation among all devices, unequal turns end in a deadlock.
        needed = jax.lax.pmax(needed, shards)
    return jax.lax.fori_loop(0, needed, lambda i, carry: body(carry, index[i]), carry)


def take_rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """`x[index]` along the first axis, zeros where `index` is past the end: `[size, …]`."""
    return x.at[index].get(mode="fill", fill_value=0)


def flatten(tree: Tree) -> Tree:
    """`[batch, length, …]` → `[batch * length, …]` in every leaf."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def over_batch_shards(
    function: Callable[[Tree, Tree], tuple[Tree, Tree]], mapped: Tree, whole: Tree
) -> tuple[Tree, Tree]:
    """`function(mapped, whole) -> (mapped results, sums)`, on each device for its own sequences.

    Compacting rows over the whole batch would move them between devices; so each device of the mesh in
    use compacts those that it holds. Mesh axes that do not split the batch (tensor parallelism) stay in
    the compiler's hands.

    Args:
      function: pure. Its mapped results have a leading batch axis, its sums are added up over devices.
      mapped: tree of arrays `[batch, …]`.
      whole: tree of arrays that every device sees whole (parameters; gathered where they are split over
        an axis that splits the batch as well).

    Returns:
      What `function` returns for the whole batch.
    """
    axes = _batch_axes(jax.tree.leaves(mapped)[0].shape[0])
    if not axes:
        return function(mapped, whole)

    def local(mapped: Tree, whole: Tree) -> tuple[Tree, Tree]:
        results, sums = function(mapped, whole)
        return results, jax.tree.map(lambda x: jax.lax.psum(x, axes), sums)

    split, alike = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        local,
        in_specs=(split, alike),
        out_specs=(split, alike),
        axis_names=set(axes),
        check_vma=False,
    )(mapped, whole)


def _batch_axes(batch: int) -> tuple[str, ...]:
    """Axes of the mesh in use that split the batch; none where they do not divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    axes = dict(spmd.get_logical_axis_rules()).get("batch") or ()
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    axes = tuple(a for a in axes if mesh.shape.get(a, 1) > 1 and a not in mesh.manual_axes)
    return axes if batch % math.prod(mesh.shape[a] for a in axes) == 0 else ()
