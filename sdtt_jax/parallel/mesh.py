"""Device meshes: their axes, the rules that map logical axes to them, and how they split a batch."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import spmd
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from sdtt_jax.config import require, whole
from sdtt_jax.errors import ConfigError
from sdtt_jax.typing import Tree

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]
# Logical axis -> mesh axes. A mesh axis serves one dimension of an array: the first that asks for
# it. So activations [batch, length, embed] are split over the batch, while parameters [embed, mlp]
# are split over fsdp (embed) and model (mlp).
RULES: Rules = (
    ("batch", BATCH_AXES),
    ("length", None),
    ("vocab", "model"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("mlp", "model"),
    ("embed", "fsdp"),
    ("kv", None),
    ("layers", None),
    ("rank", None),
)

# Logical axes that stay whole on every device where the mesh does not divide them: a network may have fewer
# heads of keys and values than there are devices to split its query heads.
WHOLE_IF_UNDIVIDED = ("kv_heads",)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis."""

    # Batch split, parameters replicated; -1 takes all devices that the other two leave.
    data: int = -1
    fsdp: int = 1  # batch split and parameters split too (each is gathered where it is used)
    model: int = 1  # tensor parallelism: heads, MLP width and vocabulary split

    def __post_init__(self) -> None:
        whole(1, self, "fsdp", "model")
        whole(-1, self, "data")
        require(self.data != 0, "data must be positive or -1, not 0.")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `(data, fsdp, model)` over `devices` (all of them if None).

    Its axes are of type Auto: the compiler propagates shardings from the constraints given here and
    in the networks.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices; the message names axis, size,
        devices and the nearest size that fits.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    abstract = abstract_mesh(config, len(devices), slices)
    shape = abstract.axis_sizes
    grid = hybrid_devices(shape, slices, devices) if slices > 1 else slice_devices(shape, devices)
    return Mesh(grid, abstract.axis_names, axis_types=abstract.axis_types)


def abstract_mesh(config: MeshConfig, count: int, slices: int = 1) -> AbstractMesh:
    """The mesh that `make_mesh` makes of `count` devices in so many slices; none of them need exist.

    Raises:
      ConfigError: as `make_mesh`.
    """
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
    crossing_axis(shape, slices)
    return AbstractMesh(shape, AXES, (AxisType.Auto,) * len(AXES))


def check_mesh(mesh: Any) -> None:
    """Raises `ConfigError` unless `mesh` has the axes of `make_mesh`, of type Auto.

    A mesh of `jax.make_mesh` has axes of type Explicit if none is named, on which networks do not compute.
    """
    suits = isinstance(mesh, Mesh | AbstractMesh) and set(AXES) <= set(mesh.axis_names)
    if not suits or set(mesh.axis_types) != {AxisType.Auto}:
        raise ConfigError(
            f"mesh must be a jax.sharding.Mesh with the axes {', '.join(AXES)} of type Auto, not {mesh!r}; "
            "make_mesh(MeshConfig()) makes one."
        )


def slice_devices(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of one slice as an array of `shape`, whose axes follow the torus as far as they can.

    An axis may take a part of a side of the torus: fsdp=16 is 8 × 2 of the 8 × 8 chips of a v6e-64. (By
    default JAX allows that on a v5e only, and fails elsewhere.)
    """
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def hybrid_devices(
    shape: tuple[int, ...], slices: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    """The devices of several slices as an array of `shape`, in which only one batch axis crosses slices.

    Between slices there is only the data-centre network, so the axis that needs it least crosses it:
    data (gradients, once a step) if the number of slices divides it, else fsdp.

    Raises:
      ConfigError: the number of slices divides neither.
    """
    crossing = crossing_axis(shape, slices)
    inside = [size // slices if i == crossing else size for i, size in enumerate(shape)]
    across = [slices if i == crossing else 1 for i in range(len(shape))]
    return mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )


def crossing_axis(shape: tuple[int, ...], slices: int) -> int:
    """The place in `shape` of the axis that crosses slices: the first batch axis that they divide.

    Raises:
      ConfigError: the number of slices divides neither.
    """
    for axis in range(len(BATCH_AXES)):
        if shape[axis] % slices == 0:
            return axis
    raise ConfigError(
        f"The devices lie in {slices} slices, which divide neither mesh.data={shape[0]} nor "
        f"mesh.fsdp={shape[1]}; choose a mesh.data that is a multiple of {slices}."
    )


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Makes logical constraints refer to `mesh` and `RULES` while tracing; errors as `check_mesh`."""
    check_mesh(mesh)
    try:
        context: contextlib.AbstractContextManager[Any] = jax.set_mesh(mesh)
    except ValueError:  # a caller's own `jit` or `vmap` is being traced
        context = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with context, spmd.logical_axis_rules(tuple(RULES)):
        yield


def free_axes() -> dict[str, int]:
    """The axes of the mesh in use over which the compiler may split arrays, and the devices along them."""
    mesh = jax.sharding.get_abstract_mesh()
    return {axis: size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes}


def vary_alike(*trees: Tree) -> tuple[Tree, ...]:
    """The same arrays, all of which vary over the axes of a `jax.shard_map` over which one of them does.

    Operations with a gradient of their own take their arguments so. Parameters that all devices share then
    have a gradient of each device's rows inside, and JAX adds these up outside. Only under `check_vma=True`
    does JAX know over which axes an array varies; anywhere else nothing changes.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return trees
    every = frozenset().union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves(trees)))

    def cast(x: jax.Array) -> jax.Array:
        return jax.lax.pcast(x, tuple(sorted(every - jax.typeof(x).mat.varying)), to="varying")

    varied: tuple[Tree, ...] = jax.tree.map(cast, trees)
    return varied


def mesh_of(tree: Tree) -> Mesh:
    """The mesh that the (abstract) arrays of `tree` are placed on; every leaf has the same."""
    return jax.tree.leaves(tree)[0].sharding.mesh


def mesh_if_any(tree: Tree) -> Mesh | None:
    """The mesh that the arrays of `tree` are placed on; None for one device, or if there are no arrays."""
    sharding = getattr(next(iter(jax.tree.leaves(tree)), None), "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    assert isinstance(sharding.mesh, Mesh)
    # A caller's own mesh of one device, as of arrays that were computed within `jax.set_mesh`.
    foreign = sharding.mesh.size == 1 and not set(AXES) <= set(sharding.mesh.axis_names)
    return None if foreign else sharding.mesh


def context_of(params: Tree) -> contextlib.AbstractContextManager[None]:
    """The context to call a network in: the mesh of its parameters with the rules of training, or none.

    Raises:
      ConfigError: they lie on one device, but the caller is within `jax.set_mesh` of several.
    """
    if (mesh := mesh_if_any(params)) is not None:
        return use_mesh(mesh)
    around, leaf = jax.sharding.get_abstract_mesh().size, next(iter(jax.tree.leaves(params)), None)
    require(
        around <= 1 or not getattr(leaf, "committed", False),
        f"The parameters lie on one device, but jax.set_mesh has set a mesh of {around}; load the model with "
        "mesh=make_mesh(MeshConfig()), or call it outside of that mesh.",
    )
    return contextlib.nullcontext()


def axis_pieces(axes: Any, mesh: Mesh) -> int:
    """The number of pieces that mesh axes (one name, several or None) split a dimension into."""
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    return math.prod(mesh.shape[name] for name in names)


def batch_pieces(mesh: Mesh | None) -> int:
    """The number of pieces that a mesh splits a batch into; 1 without a mesh. Errors as `check_mesh`."""
    if mesh is None:
        return 1
    check_mesh(mesh)
    return axis_pieces(BATCH_AXES, mesh)


def full_batch(batch_size: int, mesh: Mesh | None) -> int:
    """`batch_size`, rounded up to a multiple of the pieces that a mesh splits batches into.

    A batch of any other size would be computed whole on every device.
    """
    pieces = batch_pieces(mesh)
    return math.ceil(batch_size / pieces) * pieces


def check_batch_size(
    batch_size: int, mesh: Mesh, microbatches: int = 1, field: str = "batch_size"
) -> None:
    """Checks that a batch splits evenly over devices and microbatches.

    Args:
      batch_size: sequences over all devices.
      mesh: its batch axes split the batch.
      microbatches: how many there are; the mesh must split each of them.
      field: what the error calls the batch size.

    Raises:
      ConfigError: naming `field` and the nearest size that fits.
    """
    pieces = batch_pieces(mesh) * microbatches
    if batch_size % pieces:
        fitting = max(round(batch_size / pieces), 1) * pieces
        raise ConfigError(
            f"{field}={batch_size} cannot be split over mesh.data * mesh.fsdp * microbatches = "
            f"{mesh.shape['data']} * {mesh.shape['fsdp']} * {microbatches}; "
            f"the nearest that can is {fitting}."
        )


def _nearest_divisor(count: int, size: int) -> int:
    return min((d for d in range(1, count + 1) if count % d == 0), key=lambda d: (abs(d - size), d))
