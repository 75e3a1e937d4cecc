"""Programs that run for longer than they compile."""

from collections.abc import Callable
from typing import Any

import jax

OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def optimized(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with the optimizations that tests/conftest.py leaves out.

    Draws by the million take a third of the time, and half a second more to compile. What is as large as a
    vocabulary is better an argument than a constant, which XLA would fold for seconds.
    """
    return jax.jit(function, compiler_options=OPTIMIZED, **options)
