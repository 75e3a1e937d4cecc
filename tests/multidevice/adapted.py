"""A program for eight devices: the base of adapters, read for training and merged; prints JSON.

python -m tests.multidevice.adapted FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.checkpoints.store import load_params, save_params
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange import adapters
from sdtt_jax.networks.lora import LoraConfig, frozen, init_adapters, merged
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.state import StateSpec
from tests.multidevice.programs import LLAMA
from tests.worlds import noisy_params

LORA = LoraConfig(rank=2, base_dtype="bfloat16")


def main(root: Path) -> None:
    mesh = make_mesh(MeshConfig())
    whole = noisy_params(LLAMA, 0)
    trained = unbox(init_adapters(LLAMA, LORA, jax.random.key(1)))
    save_params(root / "teacher" / "final", whole)
    facts = adapters.adapter_facts(LORA, root, "teacher/final")
    save_params(root / "round" / "final", trained, facts)
    shares = []

    def noted(*arguments: Any) -> Any:
        params, facts = load_params(*arguments)
        on_first = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)]
        shares.append(sum(on_first) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
        return params, facts

    with mock.patch.object(adapters, "load_params", noted):
        base = adapters.read_base(root / "teacher" / "final", LLAMA, LORA, mesh)
        joined, _ = adapters.read_delivered(root / "round" / "final", lambda _facts: LLAMA, mesh)
    expected = frozen(jax.tree.map(jnp.asarray, whole), LORA)
    try:
        StateSpec(TrainConfig(1, 8), mesh).from_params({"w": jnp.ones(8)})
    except ConfigError as error:
        refused = str(error)
    found = {
        "refused": refused,
        "read for training": shares[0],
        "read to be merged": shares[-1],
        "base": differing(base, expected),
        "merged": differing(joined, merged(expected, trained, LORA)),
        "whole": all(leaf.is_fully_replicated for leaf in jax.tree.leaves((base, joined))),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def differing(one: Any, other: Any) -> int:
    """The number of leaves with another dtype or other values."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(a.dtype != b.dtype or not np.array_equal(a, b) for a, b in pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
