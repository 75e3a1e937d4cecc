"""Where random keys come from: `fold_in` of (seed, purpose, round, step), and nothing else.

A run that is killed and resumed therefore draws the same numbers, however often it was stopped and
however many hosts take part.
"""

import zlib

import jax


def purpose_key(seed: int, purpose: str, round: int = 0) -> jax.Array:
    """Key of one purpose of a run, for example `"distill"` in round 3.

    Args:
      seed: the run's seed.
      purpose: a name; equal names give equal keys (CRC-32 of the name, so it is stable between Python
        processes, which `hash` is not).
      round: distillation round, 0 outside of the rounds.

    Returns:
      A typed PRNG key, shape `[]`. The key of a step is `jax.random.fold_in(key, step)`.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, round)


def purpose_seed(seed: int, purpose: str) -> int:
    """An integer seed in [0, 2**31) for host-side shuffling, stable between processes."""
    return zlib.crc32(f"{seed}/{purpose}".encode()) >> 1
