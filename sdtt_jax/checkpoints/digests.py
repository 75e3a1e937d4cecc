"""Digests of arrays, against which checkpoints are checked, because Orbax has no such check."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sdtt_jax.errors import CheckpointError
from sdtt_jax.ops.digest import Digest, digest, digest_on_host, is_for_host
from sdtt_jax.parallel.processes import gathered, to_host
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Tree


def params_digest(params: Tree) -> str:
    """SHA-256 (hex) over the leaves in path order: path, dtype, shape, little-endian bytes.

    The same parameters have the same digest on any mesh.
    """
    digest = hashlib.sha256()
    for path, leaf in flat_leaves(params).items():
        array = to_host(leaf)
        digest.update(f"{path} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def describe(leaves: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Per leaf `[dtype, shape, digest]`, JSON-ready.

    The digest is made on the devices that hold the leaf, piece by piece, so it costs no transfer and no
    process needs the whole array; for a small tree on CPUs, NumPy makes it. It has 64 bits: each element's
    bits are mixed with its position, and the results are summed. Sums of integers do not depend on their
    order, hence not on the mesh; a change of a single element always changes them, since the mixing is a
    bijection.

    Raises:
      CheckpointError: naming a leaf that holds a NaN or infinity.
    """
    digests = _digests(leaves)
    for path, (*_, not_finite) in digests.items():
        if not_finite:
            raise CheckpointError(
                f"{path} holds values that are not finite; this state is not saved."
            )
    return {
        path: [str(leaf.dtype), list(leaf.shape), _hex(digests[path])]
        for path, leaf in leaves.items()
    }


def leaf_digests(leaves: Mapping[str, jax.Array]) -> dict[str, str]:
    """Only the digests of `describe`; the leaves need not be finite."""
    return {path: _hex(digest) for path, digest in _digests(leaves).items()}


def _hex(digest: Digest) -> str:
    first, second, _ = digest
    return f"{int(first):08x}{int(second):08x}"


def canonical_sha256(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digests(leaves: Mapping[str, jax.Array]) -> dict[str, Digest]:
    here = {leaf.is_fully_addressable for leaf in leaves.values() if isinstance(leaf, jax.Array)}
    if len(here) != 1 or not is_for_host(leaves.values()):
        with jax.set_mesh(None):  # a caller's own may be another one than that of the leaves
            return jax.device_get(_compiled(dict(leaves)))
    found = np.array([_on_host(leaf) for leaf in leaves.values()], np.uint32)
    # Adds the sums of all processes; each piece is counted by exactly one of them.
    found = found if here.pop() else gathered(found).sum(axis=0, dtype=np.uint32)
    return dict(zip(leaves, found, strict=True))


def _on_host(leaf: jax.Array) -> Digest:
    if leaf.is_fully_addressable:
        return digest_on_host(np.asarray(leaf))
    pieces = [
        digest_on_host(np.asarray(piece.data), piece.index, leaf.shape)
        for piece in leaf.addressable_shards
        if piece.replica_id == 0
    ]
    return tuple(np.array(pieces, np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.uint32))


@jax.jit
def _compiled(leaves: dict[str, jax.Array]) -> dict[str, Digest]:
    # With a jit of its own, the digest is traced only once for all leaves of one shape.
    return jax.tree.map(jax.jit(digest), leaves)
