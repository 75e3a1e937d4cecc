"""Where random keys come from: `fold_in` of (seed, purpose, round, step), and nothing else.

A run that is killed and resumed therefore draws the same numbers, however often it was stopped and
however many hosts take part.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require

MAX_SEED = 2**32 - 1


def check_seed(seed: int) -> None:
    """Raises `ConfigError` unless `seed` is one that JAX can tell from every other: 0 … 2**32 - 1.

    Without `jax_enable_x64`, `jax.random.key` drops the higher bits of a larger one.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    require(
        whole and 0 <= seed <= MAX_SEED,
        f"seed={seed} must be a whole number from 0 to {MAX_SEED}.",
    )


def seed_key(seed: int) -> jax.Array:
    """The typed PRNG key of a seed, `jax.random.key(seed)`, shape `[]`.

    Raises:
      ConfigError: the seed is not a whole number from 0 to `MAX_SEED`.
    """
    check_seed(seed)
    return jax.random.key(int(seed))


def check_key(key: Any) -> None:
    """Raises `ConfigError` unless `key` is one PRNG key, from `jax.random.key` or the older `PRNGKey`."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    # Raw keys: Threefry's have 2 words, RBG's 4.
    raw = dtype == np.uint32 and shape in ((2,), (4,))
    found = f"an array {dtype}{list(shape)}" if shape is not None else repr(key)
    hint = "; take one of them, keys[0]" if typed and shape else ""
    require(
        (typed and shape == ()) or raw,
        f"key must be one jax.random.key(SEED), not {found:.60}{hint}.",
    )


def purpose_key(seed: int, purpose: str, round: int = 0) -> jax.Array:
    """Key of one purpose of a run, for example `"distill"` in round 3.

    Args:
      seed: the run's seed, 0 to `MAX_SEED`.
      purpose: a name; equal names give equal keys (CRC-32 of the name, so it is stable between Python
        processes, which `hash` is not).
      round: distillation round, 0 outside of the rounds.

    Returns:
      A typed PRNG key, shape `[]`. The key of a step is `jax.random.fold_in(key, step)`.
    """
    key = jax.random.fold_in(seed_key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, round)


def purpose_seed(seed: int, purpose: str) -> int:
    """A seed in [0, 2**31) for host-side shuffling, the same in any process; `seed` is at most `MAX_SEED`."""
    check_seed(seed)
    return zlib.crc32(f"{seed}/{purpose}".encode()) >> 1
