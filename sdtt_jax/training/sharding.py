"""Meshes, and where each array lives on them: pure functions of (abstract tree, rules, mesh)."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta, spmd
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from sdtt_jax.configs import require
from sdtt_jax.errors import ConfigError

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]
Tree = Any

# Logical axis -> mesh axes. A mesh axis serves one dimension of an array: the first that asks for
# it. So activations [batch, length, embed] are split over the batch, while parameters [embed, mlp]
# are split over fsdp (embed) and model (mlp).
RULES: Rules = (
    ("batch", BATCH_AXES),
    ("length", None),
    ("vocab", "model"),
    ("heads", "model"),
    ("mlp", "model"),
    ("embed", "fsdp"),
    ("kv", None),
    ("layers", None),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis.

    Attributes:
      data: batch split, parameters replicated; -1 takes all devices that the other two leave.
      fsdp: batch split and parameters split too (each is gathered where it is used).
      model: tensor parallelism: heads, MLP width and vocabulary split.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        require(self.data == -1 or self.data > 0, f"data must be positive or -1, not {self.data}.")
        for name in ("fsdp", "model"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}.")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `(data, fsdp, model)` over `devices` (all of them if None).

    Its axes are of type Auto on purpose: the compiler propagates shardings from the constraints
    given here and in the networks. (`jax.make_mesh` alone would make them Explicit, which types
    every array.)

    Raises:
      ConfigError: the sizes do not multiply to the number of devices; names axis, size, devices and
        the nearest size that fits.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    for axis in ("fsdp", "model"):
        size = getattr(config, axis)
        if count % size:
            raise ConfigError(
                f"mesh.{axis}={size} does not divide the {count} devices; "
                f"the nearest size that does is {_nearest_divisor(count, size)}."
            )
    rest = config.fsdp * config.model
    if count % rest:
        fitting = _nearest_divisor(count // config.model, config.fsdp)
        raise ConfigError(
            f"mesh.fsdp={config.fsdp} times mesh.model={config.model} does not divide the {count} "
            f"devices; with mesh.model={config.model} the nearest mesh.fsdp that does is {fitting}."
        )
    data = count // rest if config.data == -1 else config.data
    if data * rest != count:
        raise ConfigError(
            f"mesh.data={data} times mesh.fsdp={config.fsdp} times mesh.model={config.model} is "
            f"{data * rest}, but there are {count} devices; mesh.data={count // rest} fits "
            "(-1 chooses it by itself)."
        )
    shape = (data, config.fsdp, config.model)
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return Mesh(hybrid_devices(shape, slices, devices), AXES, axis_types=types)
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)


def hybrid_devices(
    shape: tuple[int, int, int], slices: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    """Devices of several slices as an array `shape`, of which one batch axis alone crosses slices.

    Between slices there is only the data-centre network, so what crosses it is the axis that needs it
    least: data (gradients, once a step) if the slices divide it, else fsdp.

    Raises:
      ConfigError: they divide neither.
    """
    for axis in range(len(BATCH_AXES)):
        if shape[axis] % slices == 0:
            inside = [size // slices if i == axis else size for i, size in enumerate(shape)]
            across = [slices if i == axis else 1 for i in range(len(shape))]
            return mesh_utils.create_hybrid_device_mesh(
                inside, across, devices, allow_split_physical_axes=True
            )
    raise ConfigError(
        f"The devices lie in {slices} slices, which divide neither mesh.data={shape[0]} nor "
        f"mesh.fsdp={shape[1]}; choose a mesh.data that is a multiple of {slices}."
    )


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Makes `mesh` and `rules` those that logical constraints refer to while tracing."""
    with jax.set_mesh(mesh), spmd.logical_axis_rules(tuple(rules)):
        yield


def partition_spec(names: Sequence[str | None], rules: Rules, mesh: Mesh) -> PartitionSpec:
    """Mesh axes of an array whose dimensions have the logical `names`.

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
      ConfigError: a dimension that its mesh axes do not divide, named by leaf.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if not isinstance(leaf, meta.Partitioned):
            return NamedSharding(mesh, PartitionSpec())
        spec = partition_spec(leaf.names, rules, mesh)
        for name, size, axes in zip(leaf.names, leaf.value.shape, spec, strict=True):
            pieces = _pieces(axes, mesh)
            if size % pieces:
                raise ConfigError(
                    f"Parameter {leaf_name(path)}: its axis {name!r} of size {size} cannot be "
                    f"split into {pieces} over mesh axis {axes!r}; choose a mesh size that "
                    f"divides {size}."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, boxed_abstract, is_leaf=_is_box)


def unbox(tree: Tree) -> Tree:
    """The tree without the boxes that carry logical axis names, values untouched."""
    return jax.tree.map(lambda x: x.value if _is_box(x) else x, tree, is_leaf=_is_box)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 split over (data, fsdp), the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def mesh_of(tree: Tree) -> Mesh:
    """The mesh that the (abstract) arrays of `tree` are placed on; every leaf has the same."""
    return jax.tree.leaves(tree)[0].sharding.mesh


def mesh_if_any(tree: Tree) -> Mesh | None:
    """The mesh that the arrays of `tree` are placed on, or None if they are on one device."""
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


def batch_pieces(mesh: Mesh | None) -> int:
    """Into how many pieces a mesh splits a batch; 1 for one device."""
    return 1 if mesh is None else _pieces(BATCH_AXES, mesh)


def full_batch(batch_size: int, mesh: Mesh | None) -> int:
    """`batch_size`, up to a multiple of what a mesh splits batches into: other batches it computes whole on
    every device."""
    pieces = batch_pieces(mesh)
    return math.ceil(batch_size / pieces) * pieces


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(
    batch_size: int, mesh: Mesh, microbatches: int = 1, field: str = "batch_size"
) -> None:
    """Raises `ConfigError` naming `field` unless batch and mesh and microbatches divide."""
    pieces = batch_pieces(mesh) * microbatches
    if batch_size % pieces:
        fitting = max(round(batch_size / pieces), 1) * pieces
        raise ConfigError(
            f"{field}={batch_size} cannot be split over mesh.data * mesh.fsdp * microbatches = "
            f"{mesh.shape['data']} * {mesh.shape['fsdp']} * {microbatches}; "
            f"the nearest that can is {fitting}."
        )


def place(host: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every process has, on devices; each process copies the pieces of its own."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Puts a global batch of host arrays `[batch, ...]` on the mesh.

    Each process copies only the pieces of its own devices, so all that is asked is that every
    process can make the same global batch.
    """
    sharding = batch_sharding(mesh)

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        return place(np.asarray(array), sharding)

    return jax.tree.map(put, batch)


def place_whole(tree: Tree, mesh: Mesh) -> Tree:
    """The same arrays on every device of the mesh; every process must have them (keys included)."""
    sharding = replicated(mesh)

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(x))
            return jax.jit(wrap, out_shardings=sharding)(put(jax.random.key_data(x)))
        return place(np.asarray(x), sharding)

    return jax.tree.map(put, tree)


def place_rows(
    rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], mesh: Mesh
) -> jax.Array:
    """A global batch of which each process makes only the rows that its own devices hold.

    Args:
      rows: a slice of the batch axis to those rows, `[n, ...]`; pure.
      shape: of the global batch.
      mesh: where it goes.
    """
    # Devices that differ along the model axis hold the same rows.
    made = functools.lru_cache(maxsize=None)(lambda start, stop: rows(slice(start, stop)))

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        start, stop, _ = index[0].indices(shape[0])
        return made(start, stop)

    return jax.make_array_from_callback(shape, batch_sharding(mesh), piece)


def leaf_name(path: tuple[Any, ...]) -> str:
    """Readable path of a leaf: `blocks/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def mirror_shardings(
    abstract: Tree, params_shardings: Tree, params_abstract: Tree, mesh: Mesh
) -> Tree:
    """Shardings of a tree with copies of the parameter tree in it (optimizer moments, a teacher).

    A leaf whose path ends with a parameter's path and whose shape is that parameter's takes its
    sharding; every other leaf is replicated. This needs no knowledge of the optimizer: optax keeps
    moments in trees that mirror the parameters, whatever it wraps around them.
    """
    known = {
        tuple(str(leaf_name((key,))) for key in path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params_abstract),
            jax.tree.leaves(params_shardings),
            strict=True,
        )
    }

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(leaf_name((key,)) for key in path)
        for start in range(len(names)):
            shape, found = known.get(names[start:], (None, None))
            if found is not None and shape == leaf.shape:
                return found
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def _is_box(x: Any) -> bool:
    return isinstance(x, meta.AxisMetadata)


def _pieces(axes: Any, mesh: Mesh) -> int:
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    return math.prod(mesh.shape[name] for name in names)


def _nearest_divisor(count: int, size: int) -> int:
    return min((d for d in range(1, count + 1) if count % d == 0), key=lambda d: (abs(d - size), d))
