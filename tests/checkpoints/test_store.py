"""Checkpoints: what is written comes back bit for bit. For damage and failures see tests/faults."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from sdtt_jax.checkpoints import metadata, orbax, store
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import (
    Checkpoints,
    load_facts,
    load_params,
    save_params,
    stored_digest,
)
from sdtt_jax.errors import CheckpointError, ConfigError, MismatchError
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import replicated
from tests.checkpoints.stored import flip_bit, metadata_file, restore, save_three, state_at
from tests.parallel.threads import in_threads
from tests.training import toy

# Orbax leaves coroutines behind when it meets damaged files.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*coroutine.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture
def three(tmp_path) -> Path:
    return save_three(tmp_path)


def test_the_latest_comes_back_bit_for_bit_with_its_metadata(three):
    state, stored = restore(three)
    toy.assert_same(state, state_at(3))
    assert stored == {"fingerprint": "f", "round": 1, "step": 3}


@pytest.mark.parametrize("read", [load_params, load_facts, stored_digest])
def test_a_folder_that_is_not_there_is_not_called_damaged(tmp_path, read):
    with pytest.raises(CheckpointError, match=r"no parameters at .*base; .*restore it from a copy"):
        read(tmp_path / "base")


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_only_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(state_at(step))
        checkpoints.wait()
        assert checkpoints.steps == [3, 4]


def test_every_few_may_be_kept_too(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_every=3) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(state_at(step))
        checkpoints.wait()
        assert checkpoints.steps == [3, 6, 8]


def test_an_earlier_one_can_be_asked_for(three):
    toy.assert_same(restore(three, before=3)[0], state_at(2))
    assert restore(three, before=1) is None


def test_a_step_is_saved_once(three):
    with Checkpoints(three, keep=3) as checkpoints:
        assert not checkpoints.save(state_at(3))
        assert 0 < checkpoints.seconds < 60


def test_arrays_may_be_donated_while_they_are_being_written(tmp_path):
    """The step after an asynchronous save overwrites the buffers that it is still writing."""
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    state, expected = state_at(1, width=1 << 16), state_at(1, width=1 << 16)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            state = overwrite(state)
    with Checkpoints(tmp_path) as checkpoints:
        toy.assert_same(checkpoints.restore(toy.abstract_like(expected))[0], expected)


def test_another_run_is_an_error_that_names_the_fact(three):
    with pytest.raises(CheckpointError, match="its fingerprint is 'f', this run's is 'g'"):
        restore(three, expect={"fingerprint": "g"})


def test_final_parameters_come_back_without_being_described(tmp_path):
    params = state_at(1).params
    written = {"model": {"layers": 2, "names": []}}
    save_params(tmp_path / "final", params, written)
    loaded, read = load_params(tmp_path / "final")
    assert read == written
    assert params_digest(loaded) == params_digest(params)
    assert loaded["blocks"]["bias"].dtype == jnp.bfloat16
    save_params(tmp_path / "final", state_at(2).params, written)
    again, _ = load_params(tmp_path / "final", replicated(make_mesh(MeshConfig())))
    assert params_digest(again) == params_digest(state_at(2).params)
    places = jax.tree.map(lambda leaf: leaf.sharding, again)
    placed, _ = load_params(tmp_path / "final", places)
    assert params_digest(placed) == params_digest(again)
    with pytest.raises(MismatchError, match="another model: it has no a"):
        load_params(tmp_path / "final", places | {"a": places["blocks"]["bias"]})


def test_damaged_final_parameters_are_refused(tmp_path):
    save_params(tmp_path / "final", state_at(1).params)
    flip_bit(max((tmp_path / "final" / "params").rglob("d/*"), key=lambda p: p.stat().st_size))
    with pytest.raises(CheckpointError, match="are damaged"):
        load_params(tmp_path / "final")
    with pytest.raises(CheckpointError, match="no parameters at"):
        load_params(tmp_path / "elsewhere")


def test_processes_that_find_other_parameters_under_a_name_are_an_error(tmp_path, monkeypatch):
    """Threads stand in for the processes. Oracle: the message."""
    for number in (1, 2):
        save_params(tmp_path / str(number), state_at(number).params)
    folders = tmp_path / "1", tmp_path / "2", tmp_path / "1"
    for error in in_threads(monkeypatch, *(lambda f=folder: load_params(f) for folder in folders)):
        assert isinstance(error, ConfigError), error
        assert re.search(r"checkpoint .* of process 1 and of process 0 differ", str(error)), error


def test_a_checkpoint_of_a_later_format_is_refused_by_name(three, monkeypatch):
    monkeypatch.setattr(metadata, "FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="has format 1; this version reads format 0"):
        restore(three)


def test_the_metadata_are_a_readable_json_file(three):
    stored = json.loads(metadata_file(three / "3").read_text())
    assert stored["meta"]["round"] == 1
    assert stored["leaves"]["params/blocks/kernel"][:2] == ["float32", [64, 16]]


def test_what_another_process_cannot_read_is_damaged_for_all(three, monkeypatch):
    """Otherwise it alone would go back one checkpoint, and all processes would wait for each other."""
    asked = []

    def anywhere(failed):
        asked.append(failed)
        return len(asked) == 2  # reading the latest checkpoint's leaves, after its metadata

    monkeypatch.setattr(processes, "anywhere", anywhere)
    state, _ = restore(three)
    toy.assert_same(state, state_at(2))
    assert asked == [False] * 4
    assert not (three / "3").exists()


def test_a_save_leaves_the_agreement_on_stopping_to_us(tmp_path, monkeypatch):
    """JAX remembers the last step it was asked about: if Orbax asked too, a SIGTERM would be ignored."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    save_three(tmp_path)
    assert asked == []


def test_a_save_that_fails_in_one_of_several_processes_holds_the_others_for_minutes(monkeypatch):
    """Orbax lets them wait for 20 minutes. Oracles: its option, and what the warning adds."""
    assert orbax.writing().asynchronous.timeout_secs == 1200
    assert orbax.late(TimeoutError("timed out")) == ""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert orbax.writing().asynchronous.timeout_secs == 600
    assert "Another process" in orbax.late(TimeoutError("timed out"))
    assert orbax.late(OSError("full")) == ""


@pytest.mark.parametrize("step", [2, 4])
def test_another_training_where_one_was_saved_is_refused(tmp_path, step):
    """Its states were skipped without a word, and those of the first restored. Oracle: these stay."""
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(state_at(4))
    other = state_at(2).replace(step=jnp.int32(step))
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.save(state_at(4))  # the same state once more
        with pytest.raises(CheckpointError, match=f"holds step 4 of another .* step {step} of"):
            checkpoints.save(other)
        state, _ = checkpoints.restore(toy.abstract_like(other))
    toy.assert_same(state, state_at(4))


def test_metadata_are_compared_as_they_are_read_again(tmp_path):
    """A tuple was another run's than itself. Oracle: a list, and the error before anything is saved."""
    facts = {"shape": (1, 2), "of": {"rate": 0.5}}
    with Checkpoints(tmp_path, metadata=facts) as checkpoints:
        checkpoints.save(state_at(1))
        _, found = checkpoints.restore(toy.abstract_like(state_at(1)), expect=facts)
    assert found["shape"] == [1, 2]
    with pytest.raises(ConfigError, match="metadata: Object of type int64 is not JSON"):
        Checkpoints(tmp_path, metadata={"size": np.int64(3)})


def test_nothing_is_not_what_can_be_kept(tmp_path):
    """Each checkpoint was removed as it was written, and the error spoke of another process."""
    with pytest.raises(ConfigError, match="keep must be positive, not 0"):
        Checkpoints(tmp_path, keep=0)


def test_parameters_that_cannot_be_written_are_said_with_a_remedy(tmp_path, monkeypatch):
    """Oracle: the message."""

    def full(*_arguments, **_fields):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.ocp, "save_checkpointables", full)
    with pytest.raises(
        CheckpointError, match=r"final: .* No space .*; fix that .* the same command"
    ):
        save_params(tmp_path / "final", state_at(1).params)


@pytest.mark.parametrize("name", ["lr[1e-4]", "a*", "a?", "a\\b"])
def test_where_orbax_takes_a_name_for_a_pattern_it_may_read_and_not_write(name, three, tmp_path):
    """Orbax would report success, and leave the arrays out. Oracle: what was written elsewhere comes back."""
    with Checkpoints(tmp_path / name) as checkpoints:
        with pytest.raises(ConfigError, match="cannot be read again; give a folder without"):
            checkpoints.save(state_at(1))
        assert checkpoints.steps == []
    with pytest.raises(ConfigError, match="cannot be read again; give a folder without"):
        save_params(tmp_path / name / "final", {"w": jnp.ones(2)})
    # A backslash is lost on the way to TensorStore, which then finds nothing.
    if "\\" not in name:
        shutil.copytree(three / "3", tmp_path / name / "3")
        toy.assert_same(restore(tmp_path / name)[0], state_at(3))


@pytest.mark.parametrize("name", ["b]", "c{1}", "d=2,e", "f%g#h", "i j", "ä"])
def test_other_names_are_for_orbax_what_they_are(name, tmp_path):
    params = {"w": jnp.ones(2)}
    save_params(tmp_path / name / "final", params)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / name / "final")[0], params)
