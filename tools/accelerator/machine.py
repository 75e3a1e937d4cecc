"""The machine's description, and the rates that a bare matmul and a bare copy reach on it."""

import os
import platform

import jax
import jax.numpy as jnp

from sdtt_jax.evaluation.record import versions
from tools.accelerator.bench import Bench, BenchRow, chip, seconds_of, share_of_peak

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "jax-cuda13-plugin",
    "libtpu",
)


def machine(bench: Bench) -> None:
    """The part "machine"."""
    device = jax.devices()[0]
    bench.record["device"] = device.device_kind
    bench.record["platform"] = device.platform
    known, stats = chip(), device.memory_stats() or {}
    facts: BenchRow = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "GB for arrays": stats.get("bytes_limit", 0) / 1e9 or None,
        "peak bfloat16 TFLOP/s": known and known.flops / 1e12,
        "peak memory GB/s": known and known.bandwidth / 1e9,
        "cores of the host": os.cpu_count(),
        "Python": platform.python_version(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
    facts |= {name: found for name, found in versions(PACKAGES).items() if found is not None}
    bench.rows("machine", [{"what": name, "value": value} for name, value in facts.items()])
    sizes = [256] if bench.tiny else [4096, 8192]
    for dtype in ("bfloat16", "float32"):
        for size in sizes:
            if bench.has(2, f"the matmul of {size} in {dtype}"):
                bench.row("matmul", {"dtype": dtype, "n": size}, _matmul, size, dtype)
    bench.row("copying", {"what": "on the device, read and write"}, _copy, bench.tiny)
    bench.row("copying", {"what": "host to device"}, _transfer, bench.tiny)
    bench.row("copying", {"what": "a call that does nothing"}, _nothing)


def _matmul(size: int, dtype: str) -> BenchRow:
    """Multiplies random numbers, because a GPU multiplies zeros faster."""
    keys = jax.random.split(jax.random.key(0), 2)
    left, right = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys)
    rate = 2 * size**3 / seconds_of(jax.jit(jnp.matmul), left, right)
    return {"TFLOP/s": rate / 1e12, "share of peak": share_of_peak(rate)}


def _copy(tiny: bool) -> BenchRow:
    x = jnp.zeros(2**20 if tiny else 2**29, jnp.bfloat16)
    seconds = seconds_of(jax.jit(lambda x: x + 1), x)
    return {"GB/s": 2 * x.nbytes / seconds / 1e9, "ms": 1e3 * seconds}


def _transfer(tiny: bool) -> BenchRow:
    x = jax.device_get(jnp.ones(2**18 if tiny else 2**27, jnp.float32))
    seconds = seconds_of(jax.device_put, x)
    return {"GB/s": x.nbytes / seconds / 1e9, "ms": 1e3 * seconds}


def _nothing() -> BenchRow:
    x = jnp.zeros((), jnp.float32)
    return {"ms": 1e3 * seconds_of(jax.jit(lambda x: x + 1), x)}
