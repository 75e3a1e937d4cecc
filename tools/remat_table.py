"""Measures the remat policies: time and compiled temporaries of a gradient of the denoiser's states.

    python -m tools.remat_table                          on this machine, at both sizes
    python -m tools.remat_table --topology=v5e:2x4       memory of one TPU chip, compiled ahead

The second needs the `tpu` extra but no TPU; where none is there, the environment must say so first:
TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5litepod-8 JAX_PLATFORMS=cpu.
"""

import argparse
import dataclasses
import statistics
import time
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.config import REMAT_POLICIES

DEMO = DenoiserConfig(2000, 64, num_layers=4, embed_dim=128, num_heads=4)
SMALL = DenoiserConfig(50_257, 1024)
# name, config, batch, repetitions
HERE = (("demo", DEMO, 64, 9), ("small", SMALL, 1, 3))
CHIP_BATCH = 32


def gradient(
    config: DenoiserConfig, batch: int, sharding: NamedSharding | None = None
) -> tuple[jax.stages.Compiled, Any, jax.ShapeDtypeStruct]:
    """The compiled gradient of a mean over hidden states, and the shapes of its arguments."""
    model = Denoiser(config)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return jnp.square(model.hidden(params, tokens).astype(jnp.float32)).mean()

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    boxed = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(place, flax.core.meta.unbox(boxed))
    tokens = place(jax.ShapeDtypeStruct((batch, config.length), jnp.int32))
    return jax.jit(jax.grad(loss)).lower(params, tokens).compile(), params, tokens


def temporaries(compiled: jax.stages.Compiled) -> int:
    """Bytes beside arguments and results."""
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


def measure_here() -> None:
    """A Markdown table of each size: the policies take turns, the figures are medians."""
    for name, config, batch, repetitions in HERE:
        compiled = {
            policy: gradient(dataclasses.replace(config, remat=policy), batch)
            for policy in REMAT_POLICIES
        }
        _, shapes, tokens = compiled["none"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x, rng=rng: jnp.asarray(rng.normal(scale=0.02, size=x.shape), x.dtype), shapes
        )
        ids = jnp.asarray(rng.integers(0, config.vocab_size, tokens.shape), jnp.int32)
        wall: dict[str, list[float]] = {policy: [] for policy in compiled}
        busy: dict[str, list[float]] = {policy: [] for policy in compiled}
        for repetition in range(repetitions + 1):
            for policy, (function, _, _) in compiled.items():
                start, started = time.perf_counter(), time.process_time()
                jax.block_until_ready(function(params, ids))
                if repetition:  # the first one warms up
                    wall[policy].append(time.perf_counter() - start)
                    busy[policy].append(time.process_time() - started)
        sizes = f"{config.num_layers} × {config.embed_dim} × {config.length}, batch {batch}"
        print(f"\n{name}: {sizes}, {config.compute_dtype}, {jax.default_backend()}\n")
        print("| remat | seconds | CPU seconds | temporaries, MB |\n| --- | ---: | ---: | ---: |")
        for policy, (function, _, _) in compiled.items():
            times = statistics.median(wall[policy]), statistics.median(busy[policy])
            megabytes = temporaries(function) / 1e6
            print(f"| {policy} | {times[0]:.2f} | {times[1]:.2f} | {megabytes:.0f} |")


def compile_ahead(topology: str) -> None:
    """A Markdown table of temporaries on one chip of a TPU that need not be there."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sharding = NamedSharding(Mesh(np.array(devices[:1]), ("data",)), PartitionSpec())
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    print(f"\nsmall, bfloat16, batch {CHIP_BATCH}, one chip of {topology}\n")
    print("| remat | temporaries, GB |\n| --- | ---: |")
    for policy in REMAT_POLICIES:
        try:
            chosen = dataclasses.replace(config, remat=policy)
            compiled, _, _ = gradient(chosen, CHIP_BATCH, sharding)
            print(f"| {policy} | {temporaries(compiled) / 1e9:.1f} |", flush=True)
        except jax.errors.JaxRuntimeError as error:
            print(f"| {policy} | {str(error).split('.  ')[0].splitlines()[0]} |", flush=True)


def main() -> None:
    """Prints the tables of docs/measurements/remat.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--topology", help="a TPU topology to compile for, such as v5e:2x4")
    topology = parser.parse_args().topology
    if topology:
        compile_ahead(topology)
    else:
        measure_here()


if __name__ == "__main__":
    main()
