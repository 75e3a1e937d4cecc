"""Measures the remat policies: time and compiled temporaries of a gradient of the denoiser's hidden states.

    python -m tools.remat_table                          on this machine, at both sizes
    python -m tools.remat_table --topology=v5e:2x4       memory of one TPU chip, compiled ahead

The second needs the `tpu` extra but no TPU.
"""

import argparse
import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch.ahead.topologies import compile_only, describe_devices, parse_topology
from sdtt_jax.markdown import table
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.config import REMAT_POLICIES
from sdtt_jax.parallel.placement import unbox

DEMO = DenoiserConfig(2000, 64, num_layers=4, embed_dim=128, num_heads=4)
SMALL = DenoiserConfig(50_257, 1024)
# name, config, batch, repetitions
HERE = (("demo", DEMO, 64, 9), ("small", SMALL, 1, 3))
CHIP_BATCH = 32


def gradient(
    config: DenoiserConfig, batch: int, sharding: NamedSharding | None = None
) -> tuple[jax.stages.Compiled, Any]:
    """The compiled gradient of a mean over hidden states, and the shapes of the parameters."""
    model = Denoiser(config)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return jnp.square(model.hidden(params, tokens).astype(jnp.float32)).mean()

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    params = jax.tree.map(place, unbox(abstract_params(model)))
    tokens = place(jax.ShapeDtypeStruct((batch, config.length), jnp.int32))
    return jax.jit(jax.grad(loss)).lower(params, tokens).compile(), params


def temporaries(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program takes in addition to its arguments and results."""
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


def measure_here() -> None:
    """Prints a Markdown table of each size: the policies take turns, the figures are medians."""
    for name, config, batch, repetitions in HERE:
        compiled: dict[str, Any] = {}
        shapes: Any = None
        for policy in REMAT_POLICIES:
            chosen = dataclasses.replace(config, remat=policy)
            compiled[policy], shapes = gradient(chosen, batch)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x, rng=rng: jnp.asarray(rng.normal(scale=0.02, size=x.shape), x.dtype), shapes
        )
        ids = rng.integers(0, config.vocab_size, (batch, config.length), dtype=np.int32)
        # For each policy: seconds by the clock, and CPU seconds.
        times: dict[str, list[tuple[float, float]]] = {policy: [] for policy in compiled}
        for _ in range(repetitions + 1):
            for policy, function in compiled.items():
                start, started = time.perf_counter(), time.process_time()
                jax.block_until_ready(function(params, ids))
                passed = time.perf_counter() - start, time.process_time() - started
                times[policy].append(passed)
        sizes = f"{config.num_layers} × {config.embed_dim} × {config.length}, batch {batch}"
        print(f"\n{name}: {sizes}, {config.compute_dtype}, {jax.default_backend()}\n")
        rows = []
        for policy, function in compiled.items():
            # The first one warms up.
            wall, busy = map(statistics.median, zip(*times[policy][1:], strict=True))
            megabytes = f"{temporaries(function) / 1e6:.0f}"
            rows.append([policy, f"{wall:.2f}", f"{busy:.2f}", megabytes])
        columns = ["remat", "seconds", "CPU seconds", "temporaries, MB"]
        print(table(columns, rows, right=columns[1:]))


def compile_ahead(topology: str) -> None:
    """Prints a Markdown table of temporaries on one chip of a slice, which need not be there."""
    compile_only()
    devices = describe_devices(parse_topology(topology))
    sharding = NamedSharding(Mesh(np.array(devices[:1]), ("data",)), PartitionSpec())
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    print(f"\nsmall, bfloat16, batch {CHIP_BATCH}, one chip of {topology}\n")
    rows = []
    for policy in REMAT_POLICIES:
        try:
            compiled, _ = gradient(dataclasses.replace(config, remat=policy), CHIP_BATCH, sharding)
            rows.append([policy, f"{temporaries(compiled) / 1e9:.1f}"])
        except jax.errors.JaxRuntimeError as error:
            rows.append([policy, str(error).split(".  ")[0].splitlines()[0]])
    print(table(["remat", "temporaries, GB"], rows, right=["temporaries, GB"]))


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
