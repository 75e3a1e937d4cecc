"""Keys of a run. Oracle: their definition, `fold_in` of (seed, CRC-32 of the purpose, round, step)."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.settings import RunConfig
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.trajectories import noise_of
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.harness import Options
from sdtt_jax.evaluation.settings import Sampling
from sdtt_jax.keys import (
    MAX_SEED,
    check_key,
    numbered_keys,
    purpose_key,
    purpose_seed,
    seed_key,
    unusual_generator,
)
from sdtt_jax.laboratory.student import StudentConfig


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


def test_the_generator_is_named_where_a_flag_changes_it():
    """Oracle: whether the same seed gives the same words."""
    found = {}
    for offset in (0, 7, 0):
        jax.config.update("jax_random_seed_offset", offset)
        found.setdefault(_data(seed_key(3)), []).append(unusual_generator())
    usual, moved = found.values()
    assert (usual, [list(facts) for facts in moved]) == ([{}, {}], [["random"]])


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


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, MAX_SEED])
def test_a_seed_is_jax_s_with_x64_and_without(seed):
    with jax.enable_x64(True):
        wide = _data(jax.random.key(seed))
    assert _data(seed_key(seed)) == _data(jax.random.key(seed)) == wide == (0, seed)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**32, 2**32 + 5, 2**63, 2**64, 10**30, 1.0, True])
def test_seeds_that_would_be_others_are_refused_everywhere(seed):
    """Oracle: JAX, to which 2**32 is 0 unless x64 is on, -1 is 2**32 - 1, and 2**63 an overflow."""
    everywhere = [
        seed_key,
        lambda seed: purpose_key(seed, "teacher"),
        lambda seed: purpose_seed(seed, "teacher.data"),
        *(lambda seed, kind=kind: kind(seed=seed) for kind in (Sampling, Options, StudentConfig)),
        lambda seed: RunConfig(seed=seed),
    ]
    for check in everywhere:
        with pytest.raises(
            ConfigError, match=rf"seed={seed} must be a whole number from 0 to 42949"
        ):
            check(seed)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0), np.zeros(2, np.uint32)])
def test_a_key_of_either_kind_is_one(key):
    check_key(key)
    jax.jit(check_key)(key)


# Not `split`, which would be compiled when the tests are collected.
THREE = jax.random.wrap_key_data(np.zeros((3, 2), np.uint32))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (0, "not 0"),
        (None, "not None"),
        ([0, 1], r"not \[0, 1\]"),
        (jax.device_put(np.zeros(2, np.float32)), r"not an array float32\[2\]"),
        (np.zeros(4, np.uint32), r"not an array uint32\[4\]"),
        (
            THREE,
            r"key<fry>\[3\]; take one of them, keys\[0\]",
        ),
    ],
    ids=["seed", "none", "list", "floats", "words", "several"],
)
def test_what_is_not_a_key_is_named(key, named):
    with pytest.raises(ConfigError, match=rf"key must be one jax\.random\.key\(SEED\), .*{named}"):
        check_key(key)


def test_a_run_s_keys_are_threefry_s_whatever_the_default():
    """Oracle: the same keys under JAX's own default; a raw key of two words is none under another."""
    expected = _data(purpose_key(3, "distill", 2))
    with jax.default_prng_impl("rbg"):
        assert _data(purpose_key(3, "distill", 2)) == expected
        check_key(seed_key(0))
        with pytest.raises(ConfigError, match=r"not an array uint32\[2\]"):
            check_key(np.zeros(2, np.uint32))
        with pytest.raises(ConfigError, match="key is one of 'rbg'"):
            check_key(jax.random.PRNGKey(0))


class _SeesNoise:
    mask_id, noise_kind = 3, "full"


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize(
    "draw",
    [
        check_key,
        lambda key: numbered_keys(key, jnp.arange(3)),
        lambda key: jax.jit(numbered_keys)(key, jnp.arange(3)),
        lambda key: noise_of(
            MaskedDiffusion(_SeesNoise(), make_schedule()), jax.random.split(key, 2), 4
        ),
    ],
    ids=["one", "numbered", "traced", "noise"],
)
def test_keys_whose_batch_draws_with_the_first_are_refused(implementation, draw):
    """As JAX documents of `vmap` over RBG's keys: a text would depend on its place in the batch."""
    with pytest.raises(ConfigError, match=rf"'{implementation}'.*impl='threefry2x32'"):
        draw(jax.random.key(0, impl=implementation))


def test_numbered_keys_are_folded_one_by_one():
    found = numbered_keys(jax.random.key(5), jnp.array([4, 0, 7]))
    one_by_one = [_data(jax.random.fold_in(jax.random.key(5), n)) for n in (4, 0, 7)]
    assert [_data(key) for key in found] == one_by_one
