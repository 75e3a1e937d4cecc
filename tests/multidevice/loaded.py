"""A program for eight devices: a loaded model on a mesh against the same on one device; prints JSON.

python -m tests.multidevice.loaded GOLDEN
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sdtt_jax
from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.retrieval import Datastore, Retrieving
from sdtt_jax.parallel.mesh import RULES, MeshConfig, make_mesh, use_mesh
from sdtt_jax.parallel.placement import batch_sharding, tree_shardings, unbox


def neighbours(model: sdtt_jax.Model, tokens: np.ndarray) -> float:
    """The largest difference between logits with a datastore in eight parts and with a whole one."""
    network = Retrieving(model.denoiser, neighbours=16, share=0.5)
    keys = np.random.default_rng(0).normal(size=(4096, model.config.embed_dim)).astype(np.float32)
    store = Datastore(keys, np.arange(4096, dtype=np.int32) % 90, np.arange(4096) % 3 > 0)
    mesh = jax.make_mesh((8,), ("entries",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = jax.device_put(store, jax.NamedSharding(mesh, jax.P("entries")))
    assert parts.keys.addressable_shards[0].data.shape == (512, model.config.embed_dim)
    whole = jax.NamedSharding(mesh, jax.P())
    hidden = jax.jit(model.denoiser.hidden)(model.params, tokens)
    params, hidden = jax.device_put((model.params, hidden), whole)
    found = [
        jax.jit(network.logits)(
            {"network": network.network.head_params(params), "store": x}, hidden
        )
        for x in (jax.device_put(store, whole), parts)
    ]
    return error(*found)


def growth() -> float:
    """What another block costs each device in memory as a causal model writes, in blocks of the network."""
    mesh = make_mesh(MeshConfig(fsdp=8))

    def needed(layers: int) -> tuple[int, int]:
        network = CausalNetwork(CausalConfig(90, 8, num_layers=layers, embed_dim=128, num_heads=2))
        boxed = abstract_params(network)
        params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            unbox(boxed),
            tree_shardings(boxed, RULES, mesh),
        )
        prompt = jax.ShapeDtypeStruct((8, 1), np.int32, sharding=batch_sharding(mesh))

        def write(params: Any, prompt: Any) -> jax.Array:
            return generate(network, params, jax.random.key(0), prompt, 4)

        with use_mesh(mesh):
            program = jax.jit(write).lower(params, prompt).compile()
        size = sum(x.size * 4 for x in jax.tree.leaves(params))
        return program.memory_analysis().temp_size_in_bytes, size

    (few, less), (many, more) = needed(2), needed(6)
    return (many - few) / (more - less)


def error(one: jax.Array, other: jax.Array) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def main(golden: Path) -> None:
    key, config = jax.random.key(0), SamplerConfig(num_steps=4)
    denoiser, causal = golden / "reference_tiny" / "teacher_hub.safetensors", golden / "gpt2_tiny"
    alone, judge = sdtt_jax.load(denoiser), sdtt_jax.load(causal)
    tokens = np.arange(8 * 32).reshape(8, 32) % 90
    found: list[dict[str, Any]] = [{"neighbours": neighbours(alone, tokens)}]
    for shape in ((8, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*shape))
        model = sdtt_jax.load(denoiser, mesh=mesh)
        # Eight texts divide over the mesh, three do not.
        written = [
            [np.asarray(m.denoise(key, m.prior(n), config).x) for m in (model, alone)]
            for n in (8, 3)
        ]
        # Three are filled up to eight on the mesh; a text does not depend on how many are written beside it.
        written.append([np.asarray(m.sample(key, 3, 4)) for m in (model, alone)])
        found.append(
            {
                "mesh": shape,
                "spread": len(model.params["embed"]["embedding"].sharding.device_set),
                "differing": max(np.mean(one != other) for one, other in written),
                "logits": error(*(m.logits(tokens) for m in (model, alone))),
            }
        )
    # The rest on the mesh that splits everything.
    other = sdtt_jax.load(causal, mesh=mesh)
    last = list(model.states(key, model.prior(8), config))[-1].x
    beside = jax.device_put(alone.params, jax.devices()[0])
    try:
        model.sample(key, 2, 4, helper=dataclasses.replace(alone, params=beside), mode="staged")
    except sdtt_jax.errors.ConfigError as refusal:
        found[-1]["helper"] = str(refusal)

    def written_by(model: Any, key: jax.Array = key) -> np.ndarray:
        return np.asarray(model.batches(key, tokens[:, :3], 9)[0]().tokens)

    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))):
        made = jax.random.key(0)  # on the same devices, but in another mesh
    # A key, and texts, on devices that are not the model's.
    far, first = jax.device_put(key, jax.devices()[3]), dataclasses.replace(alone, params=beside)
    moved = [
        (model.sample(far, 3, 4), written[2][0]),
        (first.sample(far, 3, 4), written[2][1]),
        (first.denoise(far, first.prior(3), config).x, written[1][1]),
        (model.score(tokens, far), model.score(tokens, key)),
        (first.score(last, far), first.score(np.asarray(last), key)),
        (written_by(other, far), written_by(other)),
        (model.sample(made, 3, 4), written[2][0]),
        (first.sample(made, 3, 4), written[2][1]),
        (model.score(tokens, made), model.score(tokens, key)),
    ]
    found[-1] |= {
        "states": bool((np.asarray(last) == written[0][0]).all()),
        "score": error(*(m.score(tokens, key) for m in (model, alone))),
        "traced": error(jax.jit(model.logits)(tokens), alone.logits(tokens)),
        "causal": error(*(m.logits(tokens) for m in (other, judge))),
        "continued": bool((written_by(other) == written_by(judge)).all()),
        "moved": [bool((np.asarray(one) == np.asarray(two)).all()) for one, two in moved],
        "growth": growth(),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
