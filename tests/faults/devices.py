"""Faults of single devices, on eight virtual ones; prints JSON.

python -m tests.faults.devices DIRECTORY
"""

import functools
import json
import sys
import unittest.mock
from pathlib import Path

import jax
import numpy as np

from sdtt_jax.checkpoints.digests import leaf_digests, params_digest
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import place_batch, place_whole
from sdtt_jax.parallel.replicas import ReplicaError, differing_replicas
from sdtt_jax.training import loop
from sdtt_jax.training.state import StateSpec
from sdtt_jax.training.step import make_train_step
from sdtt_jax.trees import flat_leaves
from tests.training import tiny, toy

# Each state is saved on one mesh and resumed on the next, which has fewer devices or other axes.
MESHES = ((4, 2, 1), (2, 1, 4), (1, 4, 1), (2, 1, 1), (1, 1, 1))


INIT = functools.partial(toy.init, jax.random.key(0))


@functools.cache
def step_fn():
    """The toy's step on every mesh: compiled once on each."""
    return make_train_step(toy.loss_fn, toy.configured())


def spec(sizes: tuple[int, int, int]) -> StateSpec:
    """The toy's state on a mesh over as many devices as the mesh needs."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    return StateSpec(toy.configured(), mesh)


def train(state, until, checkpoints=None, **fields):
    config = toy.until(toy.configured(), until, **fields)
    key = jax.random.key(3)
    return loop.train(state, step_fn(), toy.batch_at, key, config, checkpoints=checkpoints)


def other_meshes(directory: Path) -> list[dict]:
    """Two steps on each mesh, from what the mesh before it saved, compared with training on one device."""
    found = []
    alone = spec((1, 1, 1)).init(INIT)
    expected = {}
    for sizes in MESHES:
        saved = None
        if found:
            with Checkpoints(directory) as checkpoints:
                state, _ = checkpoints.restore(spec(sizes).abstract(INIT))
            saved = params_digest(state.params)
        else:
            state = spec(sizes).init(INIT)
        until = 2 * len(found) + 2
        with Checkpoints(directory) as checkpoints:
            state = train(state, until, checkpoints=checkpoints)
        alone = train(alone, until)
        expected = flat_leaves(alone.params)
        errors = [
            float(np.abs(np.asarray(leaf) - np.asarray(expected[path])).max())
            for path, leaf in flat_leaves(state.params).items()
        ]
        found.append(
            {
                "mesh": list(sizes),
                "restored": saved,
                "digest": params_digest(state.params),
                "step": int(state.step),
                "error": max(errors),
            }
        )
    return found


def nan_on_one_device() -> dict:
    """One row of a batch is NaN, and each of the eight devices holds one row."""
    mesh = make_mesh(MeshConfig(2, 4, 1))
    init = functools.partial(tiny.init, jax.random.key(0))
    state = StateSpec(tiny.config(), mesh).init(init, {"target": np.float32(0.5)})
    before = leaf_digests(flat_leaves(state))
    batch = tiny.batch_at(0)
    batch[5] = np.nan
    key = place_whole(jax.random.key(1), mesh)
    state, metrics = tiny.step_fn()(state, place_batch(batch, mesh), key)
    after = leaf_digests(flat_leaves(state))
    rejected = int(state.rejected)
    state, good = tiny.step_fn()(state, place_batch(tiny.batch_at(1), mesh), key)
    return {
        "changed": [path for path in before if after[path] != before[path]],
        "rejected": rejected,
        "rejected by devices": sorted(
            {float(shard.data) for shard in metrics["rejected"].addressable_shards}
        ),
        "differing": differing_replicas(state),
        "next": float(good["rejected"]),
        "rejected after": int(state.rejected),
    }


def corrupted_copy() -> dict:
    """Flips a bit of one device's copy of a parameter, and of another parameter that is also split."""
    state = spec((4, 2, 1)).init(INIT)
    found = {"sound": differing(state)}
    for path in ("blocks/norm1/scale", "head/linear/kernel"):
        names = path.split("/")
        leaf = functools.reduce(dict.__getitem__, names, state.params)
        damaged = state.replace(params=_replaced(state.params, names, _flipped(leaf, 3)))
        found[path] = differing(damaged)
    try:
        train(damaged, 1, check_replicas_every=1)
    except ReplicaError as error:
        found["error"] = str(error)
    return found


def differing(state) -> dict[str, list[str]]:
    """The replicas that differ, found by NumPy; a program on the devices, as for large states, must agree.

    It runs within another mesh, as a caller may have set one.
    """
    found, other = differing_replicas(state), jax.make_mesh((8,), ("x",))
    with unittest.mock.patch("sdtt_jax.ops.digest.ON_HOST", 0), jax.set_mesh(other):
        assert differing_replicas(state) == found
    return found


def _replaced(tree, names, leaf):
    first, *rest = names
    return tree | {first: _replaced(tree[first], rest, leaf) if rest else leaf}


def _flipped(leaf: jax.Array, number: int) -> jax.Array:
    pieces = []
    for index, shard in enumerate(leaf.addressable_shards):
        content = np.array(shard.data)
        if index == number:
            content.view(np.uint32).reshape(-1)[0] ^= 1
        pieces.append(jax.device_put(content, shard.device))
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)


if __name__ == "__main__":
    results = {
        "meshes": other_meshes(Path(sys.argv[1])),
        "nan": nan_on_one_device(),
        "corrupted": corrupted_copy(),
    }
    sys.stdout.write(json.dumps(results) + "\n")
