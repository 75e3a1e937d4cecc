"""Work on the selected rows of a batch only, in chunks of one static shape.

A row is one position of one sequence. The rows that count (masked, or revealed by a step) are a part of the
batch whose size depends on the data, and what is computed for a row may be `[vocab]` wide. So they are
gathered and processed `size` at a time, in a loop of as many iterations as needed: exact for every count,
and no array is `[batch * length, vocab]`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax.core import spmd
from jax.sharding import PartitionSpec

from sdtt_jax.config import require
from sdtt_jax.parallel.mesh import free_axes, vary_alike
from sdtt_jax.typing import Positions, Tree

Carry = TypeVar("Carry")

# Entries of a [chunk, columns] array in float32: 2^24 are 64 MB. A chunk of this size keeps the matmuls
# large, and the handful of such arrays that a loss needs small compared with the weights.
MAX_ENTRIES = 2**24
# A large batch takes more rows at once, or an accelerator would spend its time reading the head and adding to
# its gradient: in `MAX_TURNS` chunks of at most `MAX_ROWS` rows. More rows gain nothing (measured in
# docs/measurements/gpu.md), and an array of that many is 0.8 GB.
MAX_TURNS = 32
MAX_ROWS = 4096
LANE = 8


class Chunks(NamedTuple):
    """How the selected rows of a batch are cut into chunks."""

    scope: str  # name of the loop over chunks in profiles and compiled programs
    # How finely to cut: about this many chunks if all rows were selected. The last chunk may be nearly empty,
    # so take many parts where few rows are selected.
    parts: int


def map_selected(
    function: Callable[[Tree, Tree], Tree],
    selected: Positions,
    per_row: Tree,
    shared: Tree,
    columns: int,
    chunks: Chunks,
    fill: Tree | None = None,
) -> Tree:
    """Maps a function over the selected positions of a batch, a chunk of them at a time.

    On a mesh every device maps over the positions of its own sequences.

    Args:
      function: `(per_row, shared) -> values`, pure, of one chunk: leaves of `per_row` and `values` are
        `[n, …]`. A chunk's spare rows are zeros.
      selected: `[batch, length]` bool.
      per_row: tree of `[batch, length, …]`.
      shared: tree of arrays that every row sees (parameters, a key).
      columns: width of the widest array that `function` makes, as `[n, columns]`.
      chunks: how to cut.
      fill: tree of `[batch, length, …]`, the values of positions that are not selected; None is zeros.

    Returns:
      The values as `[batch, length, …]`.

    Raises:
      ConfigError: the arrays of `per_row` and `fill` are not all of the batch and length of `selected`.
    """

    def without_sums(rows: Tree, shared: Tree) -> tuple[Tree, tuple[()]]:
        return function(rows, shared), ()

    return map_and_sum(without_sums, selected, per_row, shared, columns, chunks, fill)[0]


def map_and_sum(
    function: Callable[[Tree, Tree], tuple[Tree, Tree]],
    selected: Positions,
    per_row: Tree,
    shared: Tree,
    columns: int,
    chunks: Chunks,
    fill: Tree | None = None,
) -> tuple[Tree, Tree]:
    """`map_selected` of a function `(per_row, shared) -> (values, sums)`, and the sums over all chunks.

    The spare rows of a chunk must add nothing to its `sums`, a tree of arrays of any shape.
    """
    mapped = jax.tree.map(jnp.asarray, (selected, per_row, fill))
    # An array with fewer rows would be read as zeros past its end, and one of another length at wrong places.
    wanted, *others = (list(x.shape) for x in jax.tree.leaves(mapped))
    wrong = next((shape for shape in others if shape[:2] != wanted), None)
    require(
        wrong is None and len(wanted) == 2,
        "The positions, tokens, states and targets of a batch must all begin with the same "
        f"[batch, length], not {wanted}{f' and {wrong}' if wrong else ''}.",
    )

    def local(mapped: Tree, shared: Tree) -> tuple[Tree, Tree]:
        selected, per_row, fill = flatten(mapped)
        shapes, sums = jax.eval_shape(function, jax.tree.map(lambda x: x[:1], per_row), shared)
        if fill is None:
            fill = jax.tree.map(lambda x: jnp.zeros((len(selected), *x.shape[1:]), x.dtype), shapes)

        def body(carry: tuple[Tree, Tree], index: jax.Array) -> tuple[Tree, Tree]:
            values, sums = carry
            new, more = function(jax.tree.map(lambda x: take_rows(x, index), per_row), shared)
            values = jax.tree.map(lambda x, y: x.at[index].set(y, mode="drop"), values, new)
            return values, jax.tree.map(jnp.add, sums, more)

        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
        carry, selected, per_row, shared = vary_alike((fill, sums), selected, per_row, shared)
        size = chunk_size(len(selected), columns, chunks.parts)
        with jax.named_scope(chunks.scope):
            values, sums = fold_selected(selected, size, body, carry)
        shape = mapped[0].shape
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), values), sums

    return _over_batch_shards(local, mapped, shared)


def chunk_size(rows: int, columns: int, parts: int) -> int:
    """Rows per chunk: about `rows / parts`, as far as they fit.

    `MAX_ENTRIES` entries fit, or in a large batch `rows / MAX_TURNS` rows up to `MAX_ROWS`, if that is more.

    Args:
      rows: all rows, selected or not.
      columns: width of what is computed for each row.
      parts: about how many chunks make up all rows.
    """
    fitting = max(LANE, MAX_ENTRIES // columns, min(rows // MAX_TURNS, MAX_ROWS))
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
    if shards and math.prod(free_axes().values()) > 1:
        # Every device takes the same number of turns: with tensor parallelism the compiler puts collectives
        # into the loop, and with a permutation among all devices, unequal turns end in a deadlock. Without,
        # no device waits for another: a caller's own `shard_map` may get here on some devices alone.
        needed = jax.lax.pmax(needed, shards)
    return jax.lax.fori_loop(0, needed, lambda i, carry: body(carry, index[i]), carry)


def take_rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """`x[index]` along the first axis, zeros where `index` is past the end: `[size, …]`."""
    return x.at[index].get(mode="fill", fill_value=0)


def flatten(tree: Tree) -> Tree:
    """`[batch, length, …]` → `[batch * length, …]` in every leaf."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _over_batch_shards(
    function: Callable[[Tree, Tree], tuple[Tree, Tree]], mapped: Tree, shared: Tree
) -> tuple[Tree, Tree]:
    """`function(mapped, shared)` on each device for its own sequences, with its second results added up.

    Compacting rows over the whole batch would move them between devices. Mesh axes that do not split the
    batch (tensor parallelism) stay in the compiler's hands. `shared` is gathered where it is split over an
    axis that splits the batch as well.
    """
    axes = _batch_axes(jax.tree.leaves(mapped)[0].shape[0])
    if not axes:
        return function(mapped, shared)

    def local(mapped: Tree, shared: Tree) -> tuple[Tree, Tree]:
        results, sums = function(mapped, shared)
        return results, jax.tree.map(lambda x: jax.lax.psum(x, axes), sums)

    split, alike = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        local,
        in_specs=(split, alike),
        out_specs=(split, alike),
        axis_names=set(axes),
        check_vma=False,
    )(mapped, shared)


def _batch_axes(batch: int) -> tuple[str, ...]:
    """Axes of the mesh in use that split the batch; none where they do not divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    axes = dict(spmd.get_logical_axis_rules()).get("batch") or ()
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    axes = tuple(a for a in axes if mesh.shape.get(a, 1) > 1 and a not in mesh.manual_axes)
    return axes if batch % math.prod(mesh.shape[a] for a in axes) == 0 else ()
