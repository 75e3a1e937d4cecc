"""Checkpoints: what is written comes back bit for bit, and damage never passes for it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sdtt_jax.errors import CheckpointError
from sdtt_jax.training import checkpoint
from sdtt_jax.training.checkpoint import Checkpoints, load_params, params_digest, save_params
from sdtt_jax.training.sharding import MeshConfig, make_mesh, replicated
from sdtt_jax.training.state import TrainState, abstract_like
from tests.training import toy

# Orbax leaves coroutines behind when it meets damaged files.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*coroutine.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def state_at(step: int, width: int = 64) -> TrainState:
    """Numbers that differ with the step, in the shapes that a state has."""
    place = replicated(make_mesh(MeshConfig()))
    values = np.random.default_rng(step).normal(size=(width, 16)).astype(np.float32)

    def tree():
        return {"blocks": {"kernel": values + 1, "bias": values[0].astype(ml_dtypes.bfloat16)}}

    state = TrainState(
        step=np.int32(step),
        params=tree(),
        opt_state=((), (np.int32(step), tree()), None),
        ema_params=tree(),
        ema_count=np.int32(step),
        context={"dt": np.float32(0.5), "flags": np.array([True, False]), "empty": {}},
        rejected=np.int32(0),
        rejected_in_a_row=np.int32(0),
    )
    return jax.device_put(state, place)


@pytest.fixture
def three(tmp_path) -> Path:
    """A directory with checkpoints at steps 1, 2, 3."""
    with Checkpoints(tmp_path, keep=3, meta={"fingerprint": "f", "round": 1}) as checkpoints:
        for step in (1, 2, 3):
            assert checkpoints.save(state_at(step))
    return tmp_path


def restore(directory, **fields):
    with Checkpoints(directory, keep=3) as checkpoints:
        return checkpoints.restore(abstract_like(state_at(0)), **fields)


def largest_array_file(step: Path) -> Path:
    return max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip_bit(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 4
    path.write_bytes(content)


def test_the_latest_comes_back_bit_for_bit_with_its_facts(three):
    state, meta = restore(three)
    toy.assert_same(state, state_at(3))
    assert meta == {"fingerprint": "f", "round": 1, "step": 3}


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_only_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(state_at(step))
        checkpoints.wait()
        assert checkpoints.steps == [3, 4]


def test_a_step_is_saved_once(three):
    with Checkpoints(three, keep=3) as checkpoints:
        assert not checkpoints.save(state_at(3))


def test_arrays_may_be_donated_while_they_are_being_written(tmp_path):
    """The step after an asynchronous save overwrites the buffers that it is still writing."""
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    state, expected = state_at(1, width=1 << 16), state_at(1, width=1 << 16)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            state = overwrite(state)
    with Checkpoints(tmp_path) as checkpoints:
        toy.assert_same(checkpoints.restore(abstract_like(expected))[0], expected)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_an_array_is_found(three, position):
    """Orbax alone restores it without an error."""
    flip_bit(largest_array_file(three / "3"), position)
    state, _ = restore(three)
    toy.assert_same(state, state_at(2))


def _meta_file(step: Path) -> Path:
    [path] = (step / "meta").glob("*.json")
    return path


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _alter(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _empty(step: Path) -> None:
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


DAMAGE = {
    "array file cut": lambda step: _cut(largest_array_file(step)),
    "array file gone": lambda step: largest_array_file(step).unlink(),
    "manifest cut": lambda step: _cut(step / "state" / "manifest.ocdbt"),
    "tree metadata cut": lambda step: _cut(step / "state" / "_METADATA"),
    "meta cut": lambda step: _cut(_meta_file(step)),
    "meta altered": lambda step: _alter(_meta_file(step), '"round": 1', '"round": 2'),
    "a type altered": lambda step: _alter(_meta_file(step), '"float32"', '"float64"'),
    "meta gone": lambda step: _meta_file(step).unlink(),
    "everything gone": _empty,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_taken(three, damage, caplog):
    DAMAGE[damage](three / "3")
    with Checkpoints(three, keep=3) as checkpoints:
        state, _ = checkpoints.restore(abstract_like(state_at(0)))
        toy.assert_same(state, state_at(2))
        assert checkpoints.steps == [1, 2]
        assert [path.name.split("-")[0] for path in (three / "corrupt").iterdir()] == ["3"]
        assert "damaged" in caplog.text
        # Orbax skips saves below its latest step without a word: step 3 must be writable again.
        assert checkpoints.save(state_at(3))
    toy.assert_same(restore(three)[0], state_at(3))


def test_all_damaged_is_an_error_and_not_a_fresh_start(three):
    for step in (1, 2, 3):
        flip_bit(largest_array_file(three / str(step)))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"Every checkpoint in .* is damaged"):
            restore(three)
    assert sorted(p.name for p in three.iterdir() if p.name.isdigit()) == ["1", "2", "3"]


def test_only_damaged_ones_left_aside_is_an_error_too(three):
    (three / "corrupt").mkdir()
    for step in (1, 2, 3):
        (three / str(step)).rename(three / "corrupt" / str(step))
    with pytest.raises(CheckpointError, match="only damaged checkpoints"):
        restore(three)


def test_leftovers_of_a_killed_save_are_ignored(three):
    (three / "4.orbax-checkpoint-tmp").mkdir()
    (three / "notes.txt").write_text("a stray file")
    toy.assert_same(restore(three)[0], state_at(3))


def _without_bias(state):
    return state.replace(params={"blocks": {"kernel": state.params["blocks"]["kernel"]}})


def _with_more(state):
    extra = state.params["blocks"] | {"scale": state.step}
    return state.replace(params={"blocks": extra})


def _retyped(dtype=None, shape=None):
    def change(state):
        leaf = state.params["blocks"]["kernel"]
        new = jax.ShapeDtypeStruct(shape or leaf.shape, dtype or leaf.dtype, sharding=leaf.sharding)
        return state.replace(params={"blocks": state.params["blocks"] | {"kernel": new}})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_bias, "only it has params/blocks/bias"),
        (_with_more, "it has no params/blocks/scale"),
        (_retyped(shape=(3, 3)), r"params/blocks/kernel is float32\[64, 16\].*float32\[3, 3\]"),
        (_retyped(dtype=jnp.bfloat16), r"params/blocks/kernel is float32.*bfloat16"),
    ],
)
def test_another_model_is_an_error_and_not_damage(three, change, message):
    with (
        Checkpoints(three, keep=3) as checkpoints,
        pytest.raises(CheckpointError, match=f"another model.*{message}"),
    ):
        checkpoints.restore(change(abstract_like(state_at(0))))
    assert not (three / "corrupt").exists()


def test_another_run_is_an_error_that_names_the_fact(three):
    with pytest.raises(CheckpointError, match="its fingerprint is 'f', this run's is 'g'"):
        restore(three, expect={"fingerprint": "g"})


def test_a_state_that_is_not_finite_is_never_saved(three):
    state = state_at(4)
    bad = state.params["blocks"]["kernel"].at[3, 3].set(jnp.nan)
    state = state.replace(params={"blocks": state.params["blocks"] | {"kernel": bad}})
    with (
        Checkpoints(three, keep=3) as checkpoints,
        pytest.raises(CheckpointError, match=r"params/blocks/kernel.*not finite"),
    ):
        checkpoints.save(state)
    toy.assert_same(restore(three)[0], state_at(3))


def test_a_failed_save_is_logged_and_the_next_one_works(tmp_path, caplog):
    class Broken:
        def result(self):
            raise OSError("no space left on device")

    with Checkpoints(tmp_path, max_failed_saves=2) as checkpoints:
        checkpoints.save(state_at(1))
        checkpoints.wait()
        checkpoints._pending = (2, Broken())
        checkpoints.wait()
        assert "no space left" in caplog.text
        assert checkpoints.steps == [1]
        assert checkpoints.save(state_at(3))
        checkpoints.wait()
        assert checkpoints.failed_saves == 0
        checkpoints._pending = (4, Broken())
        checkpoints.wait()
        checkpoints._pending = (5, Broken())
        with pytest.raises(CheckpointError, match=r"2 times in a row.*no space left"):
            checkpoints.wait()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/steps"):
        Checkpoints(tmp_path / "file" / "steps")


def test_final_parameters_come_back_without_being_described(tmp_path):
    params = state_at(1).params
    meta = {"model": {"layers": 2, "names": []}}
    save_params(tmp_path / "final", params, meta)
    loaded, facts = load_params(tmp_path / "final")
    assert facts == meta
    assert params_digest(loaded) == params_digest(params)
    assert loaded["blocks"]["bias"].dtype == jnp.bfloat16
    save_params(tmp_path / "final", state_at(2).params, meta)
    again, _ = load_params(tmp_path / "final", replicated(make_mesh(MeshConfig())))
    assert params_digest(again) == params_digest(state_at(2).params)


def test_damaged_final_parameters_are_refused(tmp_path):
    save_params(tmp_path / "final", state_at(1).params)
    flip_bit(max((tmp_path / "final" / "params").rglob("d/*"), key=lambda p: p.stat().st_size))
    with pytest.raises(CheckpointError, match="are damaged"):
        load_params(tmp_path / "final")
    with pytest.raises(CheckpointError, match="no parameters at"):
        load_params(tmp_path / "elsewhere")


def test_a_checkpoint_of_a_later_format_is_refused_by_name(three, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="has format 1; this version reads format 0"):
        restore(three)


def test_the_facts_are_a_readable_json_file(three):
    stored = json.loads(_meta_file(three / "3").read_text())
    assert stored["meta"]["round"] == 1
    assert stored["leaves"]["params/blocks/kernel"][:2] == ["float32", [64, 16]]
