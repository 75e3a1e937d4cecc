"""Keys of a run. Oracle: their definition, `fold_in` of (seed, CRC-32 of the purpose, round, step)."""

import itertools
import os
import subprocess
import sys

import jax
import numpy as np

from sdtt_jax.keys import purpose_key, purpose_seed


def _data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_keys_of_a_run_are_all_different():
    seen = {
        _data(jax.random.fold_in(purpose_key(seed, purpose, round), step))
        for seed, purpose, round, step in itertools.product(
            (0, 1), ("teacher", "distill"), (0, 1, 2), range(4)
        )
    }
    assert len(seen) == 2 * 2 * 3 * 4


def test_equal_arguments_give_equal_keys():
    assert _data(purpose_key(3, "distill", 2)) == _data(purpose_key(3, "distill", 2))


def test_definition():
    crc = 0x414FA339  # CRC-32 of this very sentence, from the literature
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), crc), 1)
    assert _data(purpose_key(5, "The quick brown fox jumps over the lazy dog", 1)) == _data(key)


def test_seeds_do_not_depend_on_the_process():
    """Python's own `hash` of strings does, unless PYTHONHASHSEED is set."""
    code = "from sdtt_jax.keys import purpose_seed; print(purpose_seed(3, 'teacher.data'))"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.getcwd()}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(found.stdout) == purpose_seed(3, "teacher.data")


def test_seeds_are_in_range_and_differ():
    seeds = [purpose_seed(seed, name) for seed in range(50) for name in ("a", "b")]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)
