"""Validates arrays of real numbers; finds the least and greatest value of an array that is not traced.

A time step of NaN, or numbers of texts in a column instead of a row, would pass through a loss without an
error and give a plausible loss.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdtt_jax.config import inside, require


def extremes(array: Any) -> tuple[Any, Any] | None:
    """The least and the greatest value of an array of NumPy or JAX, NaN if it holds NaN.

    None if nothing is known: the array is empty, or traced by `jit` or `vmap`.
    """
    if not array.size or isinstance(array, jax.core.Tracer):
        return None
    # Found on the host, which compiles nothing, unless the array lies on other processes' devices too.
    values = jax.device_get(array) if getattr(array, "is_fully_addressable", True) else array
    return values.min().item(), values.max().item()


def check_numbers(interval: str, *shapes: tuple[int, ...], **values: ArrayLike) -> None:
    """Checks that each of `values` has one of the `shapes`, and real numbers that lie in `interval`.

    Args:
      interval: as `config.within` takes it.
      *shapes: those that are allowed; `()` is one number.
      **values: numbers or arrays, by name; of traced ones only shape and dtype are checked.

    Raises:
      ConfigError: naming the value, and what it must be.
    """
    each = (f"real numbers {list(shape)}" if shape else "one real number" for shape in shapes)
    allowed = " or ".join(each)
    for name, value in values.items():
        array: Any = value if isinstance(value, jax.Array) else np.asarray(value)
        kinds = jnp.floating, jnp.integer
        real = any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
        require(
            real and array.shape in shapes,
            f"{name} must be {allowed}, not {array.dtype}{list(array.shape)}.",
        )
        ends = extremes(array) or ()
        wrong = next((end for end in ends if not inside(interval, end)), None)
        require(wrong is None, f"{name} must lie in {interval}, not {wrong}.")
