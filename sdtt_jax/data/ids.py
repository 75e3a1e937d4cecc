"""The check of ids that a tokenizer is given. Imports no JAX, which workers that read data do not need."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from sdtt_jax.config import require


def one_text(ids: Iterable[int]) -> list[int]:
    """The ids of one text, in any range, as a list; an array, of NumPy or JAX, is fetched all at once.

    Raises:
      ConfigError: they are not whole numbers `[length]`.
    """
    array: Any = np.asarray(ids if hasattr(ids, "shape") else list(ids))
    require(
        array.ndim == 1 and (array.size == 0 or np.issubdtype(array.dtype, np.integer)),
        f"ids must be whole numbers [length], not {array.dtype}{list(array.shape)}; decode one text at a "
        "time.",
    )
    found: list[int] = array.tolist()
    return found
