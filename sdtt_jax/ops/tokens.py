"""Validates token ids that a user gives to a model or that a suite reads from a file.

A network looks up any id: one that does not exist is read as another token, and MASK in a text is a token
that no model predicts. Neither mistake shows in the result.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.values import extremes


def as_ids(ids: ArrayLike, num_ids: int, name: str = "tokens") -> Any:
    """Whole numbers of any shape as an int32 array, of NumPy or JAX.

    Args:
      ids: numbers, on the host or on devices, where they stay; of traced arrays only the dtype is checked.
      num_ids: how many ids there are.
      name: what errors call them.

    Raises:
      ConfigError: they are not whole numbers, or one of them is negative or not below `num_ids`.
    """
    try:
        array: Any = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    except ValueError:
        raise ConfigError(f"{name} must be one array; these rows differ in length.") from None
    whole = jnp.issubdtype(array.dtype, np.integer) or array.size == 0
    if not whole and not hasattr(ids, "dtype"):
        # NumPy has no dtype for whole numbers beyond 64 bits: a list that holds some becomes something else.
        exact = np.asarray(ids, object)
        whole = all(type(each) is int for each in exact.flat)
        array = exact if whole else array
    require(
        whole,
        f"{name} must be whole numbers, not {array.dtype}; an id is an index into the vocabulary.",
    )
    beyond = array.dtype == object and array.size
    ends = (array.min(), array.max()) if beyond else extremes(array) or ()
    wrong = next((end for end in ends if not 0 <= end < num_ids), None)
    require(
        wrong is None,
        f"{name}: there is no token {wrong}; ids are 0 … {num_ids - 1} here; use the tokenizer of "
        "this model.",
    )
    return array.astype(np.int32)


def as_rows(tokens: ArrayLike, num_ids: int, name: str = "tokens") -> Any:
    """A batch of texts, `[B, L]`, as int32.

    Args:
      tokens: `[B, L]` whole numbers.
      num_ids: how many ids there are: with MASK for a noisy text, without it for a clean one.
      name: what errors call them.

    Raises:
      ConfigError: another shape, no text, texts without tokens, or ids that do not exist.
    """
    ids = as_ids(tokens, num_ids, name)
    check_rows(ids.shape, name)
    return ids


def check_rows(shape: tuple[int, ...], name: str = "tokens") -> None:
    """Checks that a shape is that of a batch of texts, `[B, L]`, none of them empty.

    Args:
      shape: of the tokens.
      name: what errors call them.

    Raises:
      ConfigError: another shape, no text, or texts without tokens.
    """
    one = "; put a single text into a batch, tokens[None]" if len(shape) == 1 and shape[0] else ""
    require(
        len(shape) == 2 and min(shape) > 0,
        f"{name} must be [batch, length] with at least one text of one token, not {list(shape)}{one}.",
    )
