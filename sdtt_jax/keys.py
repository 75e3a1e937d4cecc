"""Random keys: every key is derived from (seed, purpose, round, step) by `fold_in`.

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
# Threefry, whatever JAX_DEFAULT_PRNG_IMPL says: with RBG, the keys of a batch would share one stream.
IMPLEMENTATION = "threefry2x32"
# Under `vmap`, these use only the first key of a batch.
FIRST_OF_BATCH = ("rbg", "unsafe_rbg")
# `generator()` under JAX's default flags.
DEFAULT_GENERATOR = "key<fry>, partitionable"


def check_seed(seed: int) -> None:
    """Raises `ConfigError` unless `seed` is a whole number from 0 to 2**32 - 1.

    Without `jax_enable_x64`, `jax.random.key` drops the higher bits of a larger seed.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    require(
        whole and 0 <= seed <= MAX_SEED,
        f"seed={seed} must be a whole number from 0 to {MAX_SEED}.",
    )


def seed_key(seed: int) -> jax.Array:
    """The typed PRNG key of a seed, `jax.random.key(seed, impl=IMPLEMENTATION)`, shape `[]`.

    Raises:
      ConfigError: the seed is not a whole number from 0 to `MAX_SEED`.
    """
    check_seed(seed)
    return jax.random.key(int(seed), impl=IMPLEMENTATION)


def check_key(key: Any) -> None:
    """Raises `ConfigError` unless `key` is one PRNG key, from `jax.random.key` or the older `PRNGKey`.

    Keys that cannot be batched are refused as in `check_batched`.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    # Raw keys are of JAX's default implementation: Threefry's have 2 words, RBG's 4.
    raw = dtype == np.uint32 and shape == jax.random.key_data(jax.random.key(0)).shape
    found = f"an array {dtype}{list(shape)}" if shape is not None else repr(key)
    hint = "; take one of them, keys[0]" if typed and shape else ""
    require(
        (typed and shape == ()) or raw,
        f"key must be one jax.random.key(SEED), not {found:.60}{hint}.",
    )
    check_batched(key)


def check_batched(keys: Any) -> None:
    """Raises `ConfigError` for RBG keys: under `vmap` they all draw with the first key of the batch."""
    implementation = str(jax.random.key_impl(keys))
    require(
        implementation not in FIRST_OF_BATCH,
        f"key is one of {implementation!r}, which is not supported, because under vmap such keys share one "
        f"stream; use jax.random.key(SEED, impl={IMPLEMENTATION!r}).",
    )


def numbered_keys(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """The keys `fold_in(key, n)` of `numbers: [N]`, to be batched: shape `[N]`; errors as `check_batched`."""
    check_batched(key)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


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


def generator() -> str:
    """Describes JAX's random generator under the current flags, e.g. "key<fry>, partitionable".

    The numbers that a key gives depend on the implementation of keys, and for Threefry on
    `jax_threefry_partitionable`; `jax_random_seed_offset` is added to every seed.
    """
    found = str(seed_key(0).dtype)
    if getattr(jax.config, "jax_threefry_partitionable", True):
        found += ", partitionable"
    if offset := getattr(jax.config, "jax_random_seed_offset", 0):
        found += f", seeds moved by {offset}"
    return found


def unusual_generator() -> dict[str, str]:
    """`{"random": generator()}` if the generator is not JAX's default, else {}.

    Added to the facts of stored draws; facts without it stand for the default.
    """
    found = generator()
    return {} if found == DEFAULT_GENERATOR else {"random": found}
