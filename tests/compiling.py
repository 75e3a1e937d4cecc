"""A `jax.jit` for programs that run for longer than they take to compile."""

from collections.abc import Callable
from typing import Any

import jax

OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def optimized(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with the optimizations that tests/conftest.py leaves out.

    Millions of draws take a third of the time, but half a second more to compile. Pass arrays as large as a
    vocabulary as arguments: XLA would take seconds to fold them as constants.
    """
    return jax.jit(function, compiler_options=OPTIMIZED, **options)
