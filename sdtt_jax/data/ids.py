"""The check of ids that a tokenizer is given. Imports no JAX, which workers that read data do not need."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError


def one_text(ids: Iterable[int]) -> list[int]:
    """The ids of one text, in any range, as a list; an array, of NumPy or JAX, is fetched all at once.

    Raises:
      ConfigError: they are not whole numbers `[length]`.
    """
    listed = not hasattr(ids, "shape") and isinstance(ids, Iterable)
    several = list(ids) if listed else ids
    if listed and all(type(token) is int for token in several):
        return several  # type: ignore[return-value]  # NumPy has no dtype for numbers beyond 64 bits
    try:
        array: Any = np.asarray(several)
    except ValueError:
        raise ConfigError(
            "ids must be whole numbers [length], not rows of other lengths; decode one text at a time."
        ) from None
    require(
        array.ndim == 1 and (array.size == 0 or np.issubdtype(array.dtype, np.integer)),
        f"ids must be whole numbers [length], not {array.dtype}{list(array.shape)}; decode one text at a "
        "time.",
    )
    return array.tolist()
