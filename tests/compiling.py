"""A `jax.jit` for programs that run longer than they take to compile, and one compiler for a whole job."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sdtt_jax.parallel.environment import ADDRESS

OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def optimized(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with the optimizations that tests/conftest.py leaves out.

    Millions of draws take a third of the time, but half a second more to compile. Pass arrays as large as a
    vocabulary as arguments: XLA would take seconds to fold them as constants.
    """
    return jax.jit(function, compiler_options=OPTIMIZED, **options)


def compiled_by_the_first() -> None:
    """Lets the processes of a job load what the first has compiled; each traces and lowers for itself.

    JAX can do so, but takes no two processes' CPUs to be alike. In its keys, the job's address stands for the
    devices of several processes: a program that another job has stored would be found by some of them, while
    the others wait for it. If a process traces another program than the first, it waits in vain.
    """
    from jax._src import cache_key

    of_one = getattr(cache_key, "_hash_accelerator_config", None)
    if of_one is None:
        return

    def hashed(hash_obj: Any, devices: np.ndarray) -> None:
        if len({device.process_index for device in devices.flat}) > 1:
            hash_obj.update(os.environ[ADDRESS].encode())
        else:
            of_one(hash_obj, devices)

    cache_key._hash_accelerator_config = hashed
    jax.config.update("jax_share_binary_between_hosts", True)
    jax.config.update("jax_share_binary_between_hosts_timeout_ms", 300_000)
