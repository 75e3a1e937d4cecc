"""Program of test_multidevice.py: trains the toy on one mesh of virtual devices, prints JSON.

python -m tests.training.eight_devices DATA FSDP MODEL DIRECTORY
"""

import json
import sys

import jax
import numpy as np

from sdtt_jax.training.checkpoint import Checkpoints, params_digest
from sdtt_jax.training.integrity import describe, flat_leaves
from sdtt_jax.training.loop import train
from sdtt_jax.training.sharding import MeshConfig, place_batch
from tests.training import toy


def main(data: int, fsdp: int, model: int, directory: str) -> dict:
    config = toy.configured("muon", num_steps=4, microbatches=2)
    state, step, abstract = toy.setup(config, MeshConfig(data, fsdp, model))
    key = jax.random.key(5)
    result = {
        "specs": {path: list(leaf.sharding.spec) for path, leaf in flat_leaves(state).items()}
    }
    result["initial"] = describe(flat_leaves(state.params))
    batch = place_batch(toy.batch_at(0), state.step.sharding.mesh)
    result["batch_shard"] = batch.addressable_shards[0].data.shape
    result["constraints"] = step.lower(state, batch, key).as_text().count("sharding_constraint")
    losses = []

    class Watcher:
        def update(self, step, values=None):
            del step
            losses.extend([values["loss"]] if values else [])

    with Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(abstract)
        if found is None:
            state = train(
                state,
                step,
                toy.batch_at,
                4,
                key,
                checkpoints=checkpoints,
                progress=Watcher(),
                log_every=1,
            )
        else:
            state = found[0]
            moved = {p: list(leaf.sharding.spec) for p, leaf in flat_leaves(state).items()}
            assert moved == result["specs"]
    sample = np.asarray(state.params["blocks"]["mlp"]["up"]["kernel"])[1, 3, :8]
    result |= {"losses": losses, "digest": params_digest(state.params), "sample": sample.tolist()}
    return result


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*map(int, sys.argv[1:4]), sys.argv[4])) + "\n")
