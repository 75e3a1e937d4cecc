"""The random inputs of the cases, the same for every variant, and the clock."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.networks.base import Network, abstract_params
from sdtt_jax.networks.config import TransformerConfig
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.typing import Params

PARAMETER_SPREAD = 0.02


def random_params(network: Network, sharding: Any = None, dtype: jnp.dtype | None = None) -> Params:
    """Random parameters, the same for every variant; fresh networks have zeros, and so trivial losses.

    They are made by NumPy, leaf by leaf: nothing is compiled, and at most one leaf is in memory twice. Their
    dtype is float32 or `dtype`.
    """
    rng = np.random.default_rng(0)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(shape.shape, np.float32)
        values *= PARAMETER_SPREAD
        values += path[-1].key == "scale"
        return jax.device_put(values if dtype is None else values.astype(dtype), sharding)

    shapes = unbox(abstract_params(network))
    return jax.block_until_ready(jax.tree_util.tree_map_with_path(leaf, shapes))


def random_tokens(batch_size: int, sizes: TransformerConfig) -> np.ndarray:
    """`[batch, length]` int32, MASK not among them; the same for every variant."""
    rng = np.random.default_rng(0)
    return rng.integers(0, sizes.vocab_size, (batch_size, sizes.length), dtype=np.int32)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The computed result of `function`, and the seconds that it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - began
