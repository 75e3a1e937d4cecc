"""Compares the copies of arrays that devices hold: silent data corruption has no other symptom."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdtt_jax.errors import UserError
from sdtt_jax.ops.digest import digest, digest_on_host, is_for_host
from sdtt_jax.parallel.processes import gathered, to_host
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Tree


class ReplicaError(UserError):
    """Copies of one array differ between devices."""


def check_replicas(tree: Tree, step: int) -> None:
    """Compares the digests of all copies of every leaf; all processes come to the same answer.

    Each device digests what it holds, and eight bytes per leaf and device are exchanged.

    Args:
      tree: arrays on one mesh, e.g. a `TrainState`.
      step: named in the error.

    Raises:
      ReplicaError: naming the leaves and the devices whose copy is in the minority.
    """
    differing = differing_replicas(tree)
    if differing:
        names = "; ".join(f"{path} on {', '.join(devices)}" for path, devices in differing.items())
        raise ReplicaError(
            f"After step {step} devices hold unequal copies of arrays that must be equal ({names}): silent "
            "data corruption. The last checkpoint is from before this was found; run the same command on "
            "other devices, and once with --replay to check whether the present ones compute the same."
        )


def differing_replicas(tree: Tree) -> dict[str, list[str]]:
    """Leaves with unequal copies: path -> names of the devices outside the largest group of equals."""
    leaves = {
        path: leaf
        for path, leaf in flat_leaves(tree).items()
        if isinstance(leaf.sharding, NamedSharding) and _is_replicated(leaf)
    }
    if not leaves:
        return {}
    mesh = next(iter(leaves.values())).sharding.mesh
    if is_for_host(leaves.values()):
        digests = _digests_on_host(mesh, list(leaves.values()))
    else:
        specs = tuple(leaf.sharding.spec for leaf in leaves.values())
        with jax.set_mesh(mesh):  # a caller's own may be another one
            digests = to_host(_digests_by_device(mesh, specs)(*leaves.values()))
    outliers = {
        path: _minority(leaf, mesh, digests[:, number])
        for number, (path, leaf) in enumerate(leaves.items())
    }
    return {path: devices for path, devices in outliers.items() if devices}


def _is_replicated(leaf: jax.Array) -> bool:
    pieces = leaf.sharding.devices_indices_map(leaf.shape)
    return len({str(piece) for piece in pieces.values()}) < len(pieces)


def _digests_on_host(mesh: Mesh, leaves: list[jax.Array]) -> np.ndarray:
    """The same as `_digests_by_device`, with nothing to compile."""
    places = {device: place for place, device in enumerate(mesh.devices.flat)}
    digests = np.zeros((len(places), len(leaves), 2), np.uint32)
    for number, leaf in enumerate(leaves):
        for piece in leaf.addressable_shards:
            digests[places[piece.device], number] = digest_on_host(np.asarray(piece.data))[:2]
    # Each process has left the rows of the others' devices at zero.
    return gathered(digests).sum(axis=0, dtype=np.uint32)


@functools.lru_cache(maxsize=8)
def _digests_by_device(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """Pieces -> `[devices, leaves, 2]` uint32, devices in the order of the mesh."""

    def local(*pieces: jax.Array) -> jax.Array:
        return jnp.stack([jnp.stack(digest(piece)[:2]) for piece in pieces])[None]

    return jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(mesh.axis_names),
            # The check would only assume that copies are equal.
            check_vma=False,
        )
    )


def _minority(leaf: jax.Array, mesh: Mesh, digests: np.ndarray) -> list[str]:
    pieces = leaf.sharding.devices_indices_map(leaf.shape)
    groups: dict[str, dict[bytes, list[str]]] = {}
    for device, digest_here in zip(mesh.devices.flat, digests, strict=True):
        copies = groups.setdefault(str(pieces[device]), {})
        copies.setdefault(digest_here.tobytes(), []).append(str(device))
    outliers = []
    for copies in groups.values():
        largest = max(copies.values(), key=len)
        outliers += [name for group in copies.values() if group is not largest for name in group]
    return outliers
