"""Where each array lives on a mesh: pure functions of (abstract tree, rules, mesh), and placing."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import (
    BATCH_AXES,
    WHOLE_IF_UNDIVIDED,
    Rules,
    axis_pieces,
    check_batch_size,
    check_mesh,
)
from sdtt_jax.trees import leaf_name
from sdtt_jax.typing import Tree


def partition_spec(names: Sequence[str | None], rules: Rules, mesh: Mesh) -> PartitionSpec:
    """Mesh axes of an array, from the logical names of its dimensions.

    Args:
      names: one for each dimension, None where it has none.
      rules: logical axes to mesh axes.
      mesh: the mesh with these axes.

    Raises:
      ConfigError: a name without a rule.
    """
    table = dict(rules)
    used: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for name in names:
        if name is not None and name not in table:
            raise ConfigError(f"Logical axis {name!r} has no rule; known axes: {', '.join(table)}.")
        target = table[name] if name is not None else None
        axes = (target,) if isinstance(target, str) else tuple(target or ())
        free = tuple(axis for axis in axes if axis in mesh.shape and axis not in used)
        used.update(free)
        entries.append(free[0] if len(free) == 1 else free or None)
    return PartitionSpec(*entries)


def tree_shardings(boxed_abstract: Tree, rules: Rules, mesh: Mesh) -> Tree:
    """Sharding of each parameter.

    Args:
      boxed_abstract: tree of `jax.ShapeDtypeStruct`, boxed with logical axis names where the
        network named them (`jax.eval_shape` of its init); leaves without a box are replicated.
      rules: logical axis to mesh axes.
      mesh: from `make_mesh`.

    Returns:
      The unboxed tree, of `NamedSharding`.

    Raises:
      ConfigError: mesh axes do not divide their dimension of a leaf; the message names the leaf.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if not isinstance(leaf, meta.Partitioned):
            return NamedSharding(mesh, PartitionSpec())
        table, shape = dict(rules), leaf.value.shape
        names = tuple(
            None if name in WHOLE_IF_UNDIVIDED and size % axis_pieces(table[name], mesh) else name
            for name, size in zip(leaf.names, shape, strict=True)
        )
        spec = partition_spec(names, rules, mesh)
        for name, size, axes in zip(names, shape, spec, strict=True):
            pieces = axis_pieces(axes, mesh)
            if size % pieces:
                raise ConfigError(
                    f"Parameter {leaf_name(path)}: its axis {name!r} of size {size} cannot be "
                    f"split into {pieces} over mesh axis {axes!r}; choose a mesh size that "
                    f"divides {size}."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, boxed_abstract, is_leaf=_is_box)


def spread_shardings(abstract: Tree, mesh: Mesh) -> Tree:
    """Shardings that split each array over all devices along one of its axes; whole if they divide none.

    They are for arrays that are only read, cast or joined: no device has to hold a whole array that the
    rules of training would replicate.

    Args:
      abstract: tree whose leaves have a `shape`.
      mesh: the mesh of the devices.
    """

    def sharding(leaf: Any) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        longest = max(fitting, key=lambda axis: leaf.shape[axis], default=None)
        if longest is None:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, mesh.axis_names))

    return jax.tree.map(sharding, abstract)


def unbox(tree: Tree) -> Tree:
    """The tree without the boxes that carry logical axis names, values untouched."""
    return jax.tree.map(lambda x: x.value if _is_box(x) else x, tree, is_leaf=_is_box)


def mirror_shardings(
    abstract: Tree, params_shardings: Tree, params_abstract: Tree, mesh: Mesh
) -> Tree:
    """Shardings of a tree that contains copies of the parameter tree (optimizer moments, a teacher).

    A leaf whose path ends with a parameter's path and whose shape is that parameter's takes its
    sharding; every other leaf is replicated. This needs no knowledge of the optimizer: optax keeps
    moments in trees that mirror the parameters, whatever it wraps around them. Where the parameters
    are those of several networks, each under a name, a copy of one network may lack that name.

    Args:
      abstract: the tree; leaves need a `shape`.
      params_shardings, params_abstract: sharding and shape of every parameter.
      mesh: where everything else is replicated.
    """
    own: dict[Any, NamedSharding] = {}
    within: dict[Any, NamedSharding] = {}
    for (path, leaf), placed in zip(
        jax.tree_util.tree_leaves_with_path(params_abstract),
        jax.tree.leaves(params_shardings),
        strict=True,
    ):
        names = tuple(leaf_name((key,)) for key in path)
        own[names, leaf.shape] = placed
        within[names[1:], leaf.shape] = placed

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(leaf_name((key,)) for key in path)
        ends = [(names[start:], leaf.shape) for start in range(len(names))]
        for known in (own, within):
            for end in ends:
                if end in known:
                    return known[end]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 split over (data, fsdp), the others whole; errors as `check_mesh`."""
    check_mesh(mesh)
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


# To a caller's `jax.transfer_guard("disallow")`, arrays made from callbacks are accidental transfers.
@jax.transfer_guard_host_to_device("allow")
def place(host: np.ndarray, sharding: Sharding) -> jax.Array:
    """Puts an array that every process holds on devices; each process copies its own devices' pieces."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Puts a global batch of host arrays `[batch, ...]` on the mesh.

    Every process must hold the same global batch; each copies only the pieces of its own devices.

    Raises:
      ConfigError: a leaf is a single number, or the mesh does not divide the batch.
    """
    sharding = batch_sharding(mesh)

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        host = np.asarray(array)
        require(
            host.ndim > 0,
            f"A batch has arrays [batch, ...], and one of its leaves is the single number {host}; repeat it "
            "for each row, or put it into the state's context.",
        )
        check_batch_size(len(host), mesh)
        return place(host, sharding)

    return jax.tree.map(put, batch)


def place_whole(tree: Tree, where: Mesh | Sharding) -> Tree:
    """Puts the same arrays, or keys, on every device of a mesh; every process must hold them."""
    sharding = replicated(where) if isinstance(where, Mesh) else where

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(x))
            return jax.jit(wrap, out_shardings=sharding)(put(jax.random.key_data(x)))
        return place(np.asarray(x), sharding)

    return jax.tree.map(put, tree)


@jax.transfer_guard_host_to_device("allow")
def place_rows(
    rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], mesh: Mesh
) -> jax.Array:
    """Builds a global batch; each process computes only the rows that its devices hold.

    Args:
      rows: pure function from a slice of the batch axis to those rows, `[n, ...]`.
      shape: the shape of the global batch.
      mesh: where it goes.
    """
    # Devices that differ along the model axis hold the same rows.
    made = functools.lru_cache(maxsize=None)(lambda start, stop: rows(slice(start, stop)))

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        start, stop, _ = index[0].indices(shape[0])
        return made(start, stop)

    return jax.make_array_from_callback(shape, batch_sharding(mesh), piece)


def _is_box(x: Any) -> bool:
    return isinstance(x, meta.AxisMetadata)
