"""Damaged, missing and unwritable checkpoints. Oracle: the states that were saved, bit for bit."""

import resource
import shutil
import time

import jax
import jax.numpy as jnp
import pytest

from sdtt_jax.checkpoints import store
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.errors import CheckpointError, ConfigError, MismatchError
from tests.checkpoints import stored
from tests.checkpoints.stored import flip_bit, largest_array_file, restore, save_three, state_at
from tests.training import tiny, toy

# Orbax leaves coroutines behind when it meets damaged files.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*coroutine.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_three(tmp_path_factory.mktemp("three"))


@pytest.fixture
def three(saved, tmp_path):
    """Checkpoints at steps 1, 2, 3, to be damaged."""
    return shutil.copytree(saved, tmp_path / "three")


@pytest.mark.fault(
    row=2,
    fault="killed while it deletes an old checkpoint",
    promise="the half-deleted one is never chosen, and goes when its turn comes",
)
@pytest.mark.parametrize("gone", ["_CHECKPOINT_METADATA", "state", "meta"])
def test_row_02_a_half_deleted_old_step(three, gone):
    victim = three / "1" / gone
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    with Checkpoints(three, keep=3) as checkpoints:
        state, _ = checkpoints.restore(toy.abstract_like(state_at(0)))
        toy.assert_same(state, state_at(3))
        assert checkpoints.save(state_at(4))
        checkpoints.wait()
        assert checkpoints.steps == [2, 3, 4]


DAMAGED_ARRAYS = {
    "cut": lambda step: stored.cut(largest_array_file(step)),
    "gone": lambda step: largest_array_file(step).unlink(),
}
DAMAGED_FACTS = {
    "manifest cut": lambda step: stored.cut(step / "state" / "manifest.ocdbt"),
    "tree metadata cut": lambda step: stored.cut(step / "state" / "_METADATA"),
    "meta cut": lambda step: stored.cut(stored.metadata_file(step)),
    "meta altered": lambda s: stored.alter(stored.metadata_file(s), '"round": 1', '"round": 2'),
    "a type altered": lambda s: stored.alter(stored.metadata_file(s), '"float32"', '"float64"'),
    "meta gone": lambda step: stored.metadata_file(step).unlink(),
}


def falls_back(three, caplog, damage):
    """The checkpoint before is taken, the damaged one moved aside and named, and its step saved again."""
    damage(three / "3")
    with Checkpoints(three, keep=3) as checkpoints:
        state, _ = checkpoints.restore(toy.abstract_like(state_at(0)))
        toy.assert_same(state, state_at(2))
        assert checkpoints.steps == [1, 2]
        assert [path.name.split("-")[0] for path in (three / "corrupt").iterdir()] == ["3"]
        [warning] = [r.getMessage() for r in caplog.records if r.name.endswith("checkpoints.store")]
        assert warning.startswith(f"Checkpoint {three / '3'} is damaged (")
        # Orbax skips saves below its latest step without a word: step 3 must be writable again.
        assert checkpoints.save(state_at(3))
    toy.assert_same(restore(three)[0], state_at(3))


@pytest.mark.fault(
    row=3,
    fault="an array file is cut short or gone",
    promise="named; moved to corrupt/; the checkpoint before it is taken",
)
@pytest.mark.parametrize("damage", DAMAGED_ARRAYS)
def test_row_03_an_array_file_is_cut(three, caplog, damage):
    falls_back(three, caplog, DAMAGED_ARRAYS[damage])


@pytest.mark.fault(
    row=4,
    fault="a bit of an array file flips",
    promise="found by our digests (Orbax restores it without a word); the one before it is taken",
)
@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_row_04_a_flipped_bit(three, caplog, position):
    falls_back(three, caplog, lambda step: flip_bit(largest_array_file(step), position))


@pytest.mark.fault(
    row=5,
    fault="manifest, metadata or facts are cut, altered or gone",
    promise="named; moved to corrupt/; the checkpoint before it is taken",
)
@pytest.mark.parametrize("damage", DAMAGED_FACTS)
def test_row_05_manifest_metadata_or_facts_damaged(three, caplog, damage):
    falls_back(three, caplog, DAMAGED_FACTS[damage])


@pytest.mark.fault(
    row=6,
    fault="an empty step folder",
    promise="moved aside like a damaged one",
)
def test_row_06_an_empty_step_folder(three, caplog):
    falls_back(three, caplog, stored.empty)


@pytest.mark.fault(
    row=6,
    fault="stray files, the rest of an unfinished save",
    promise="ignored; the run goes on and saves",
)
def test_row_06_leftovers(three):
    (three / "4.orbax-checkpoint-tmp").mkdir()
    (three / "notes.txt").write_text("a stray file")
    with Checkpoints(three, keep=3) as checkpoints:
        toy.assert_same(checkpoints.restore(toy.abstract_like(state_at(0)))[0], state_at(3))
        assert checkpoints.save(state_at(4))
    toy.assert_same(restore(three)[0], state_at(4))


@pytest.mark.fault(
    row=7,
    fault="every checkpoint is damaged",
    promise="an error that names each and its reason; never a silent fresh start; nothing is moved",
)
def test_row_07_all_damaged(three):
    for step in (1, 2, 3):
        flip_bit(largest_array_file(three / str(step)))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"Every .* is damaged \(step 3: .*step 1: "):
            restore(three)
    assert sorted(p.name for p in three.iterdir() if p.name.isdigit()) == ["1", "2", "3"]


@pytest.mark.fault(
    row=7,
    fault="only checkpoints that were moved aside are left",
    promise="the same error; never a silent fresh start",
)
def test_row_07_all_moved_aside(three):
    (three / "corrupt").mkdir()
    for step in (1, 2, 3):
        (three / str(step)).rename(three / "corrupt" / str(step))
    with pytest.raises(CheckpointError, match="only damaged checkpoints"):
        restore(three)


@pytest.mark.fault(
    row=8,
    fault="training goes on past a step that was found damaged",
    promise="saves at and below that step really happen; the end is the unbroken run's, bit for bit",
)
def test_row_08_saves_happen_after_a_fallback(tmp_path):
    unbroken = tiny.run(tmp_path / "unbroken")
    tiny.run(tmp_path / "broken", num_steps=10, save_every=5)
    steps = tmp_path / "broken" / "steps"
    flip_bit(largest_array_file(steps / "10"))
    toy.assert_same(tiny.run(tmp_path / "broken", save_every=5), unbroken)
    assert sorted(int(p.name) for p in steps.iterdir() if p.name.isdigit()) == [10, 12]
    flip_bit(largest_array_file(steps / "12"))
    toy.assert_same(tiny.run(tmp_path / "broken", save_every=5), unbroken)


class DiskFull:
    """Keeps the files of this process below 50 kB; Python ignores the signal, so that writes fail."""

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, self.before[1]))

    def __exit__(self, *exception):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


WIDE = 1 << 14  # A megabyte for each of four leaves.


@pytest.mark.fault(
    row=16,
    fault="the disk is full",
    promise="every failure is logged; after three in a row the run stops; the old checkpoint is whole",
)
def test_row_16_the_disk_is_full(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.save(state_at(1, WIDE))
        checkpoints.wait()
        with DiskFull():
            for step in (2, 3):
                checkpoints.save(state_at(step, WIDE))
                checkpoints.wait()
                assert f"Saving step {step} in {tmp_path} failed" in caplog.text
            checkpoints.save(state_at(4, WIDE))
            with pytest.raises(CheckpointError, match=r"failed 3 times in a row.*File too large"):
                checkpoints.wait()
        assert checkpoints.steps == [1]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state, _ = checkpoints.restore(toy.abstract_like(state_at(0, WIDE)))
    toy.assert_same(state, state_at(1, WIDE))


@pytest.mark.fault(
    row=27,
    fault="one save fails, the next would work",
    promise="logged and counted; no false latest step; the next save is made and the count starts anew",
)
def test_row_27_one_save_fails(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.save(state_at(1, WIDE))
        checkpoints.wait()
        with DiskFull():
            checkpoints.save(state_at(2, WIDE))
            checkpoints.wait()
        assert "Saving step 2" in caplog.text
        assert (checkpoints.failed_saves, checkpoints.steps) == (1, [1])
        assert checkpoints.save(state_at(3, WIDE))
        checkpoints.wait()
        assert (checkpoints.failed_saves, checkpoints.steps) == (0, [1, 3])
    with DiskFull(), Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state_at(4, WIDE))
    assert "Saving step 4" in caplog.text, "also if it fails while the program ends"


def test_failures_are_counted_at_the_next_save(tmp_path, caplog):
    """A training does not wait between its saves. Oracle: a save is counted once its outcome is asked for."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with DiskFull():
            for step in (1, 2, 3):
                assert checkpoints.save(state_at(step, WIDE))
                assert checkpoints.failed_saves == step - 1
            with pytest.raises(CheckpointError, match=r"failed 3 times in a row.*File too large"):
                checkpoints.save(state_at(4, WIDE))
        assert (checkpoints.failed_saves, checkpoints.steps) == (3, [])
    assert [f"Saving step {step} in" in caplog.text for step in (1, 2, 3, 4)] == [True] * 3 + [
        False
    ]


def test_a_save_that_cannot_begin_is_counted_too(tmp_path, caplog, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(state_at(1))
        checkpoints.wait()

        def refuse(*_):
            raise OSError("no quota")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._orbax, "save_checkpointables_async", refuse)
            assert not checkpoints.save(state_at(2))
            assert checkpoints.failed_saves == 1
            assert "Saving step 2" in caplog.text
            assert not checkpoints.save(state_at(3))
            with pytest.raises(CheckpointError, match=r"failed 3 times in a row.*no quota"):
                checkpoints.save(state_at(4))
        assert checkpoints.save(state_at(5))
        checkpoints.wait()
        assert (checkpoints.failed_saves, checkpoints.steps) == (0, [1, 5])


def test_a_training_does_not_end_well_in_a_folder_that_was_moved(tmp_path):
    """The state is on disk, but not where the next stage looks for it."""
    with Checkpoints(tmp_path / "steps") as checkpoints:
        assert checkpoints.save(state_at(1))
        checkpoints.wait()
        (tmp_path / "steps").rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match="steps was moved or removed"):
            checkpoints.finish(state_at(1))


def test_the_last_state_is_on_disk_when_a_training_ends(tmp_path, monkeypatch):
    """The next stage used to go on from the checkpoint before, with other parameters and without a word."""
    last = state_at(2, WIDE)
    monkeypatch.setattr(store, "MOST_FAILED_SAVES", 9)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(state_at(1, WIDE))
        checkpoints.wait()
        with DiskFull():
            checkpoints.save(last)
            with pytest.raises(
                CheckpointError, match=r"The last state, of step 2, .*File too large"
            ):
                checkpoints.finish(last)
        checkpoints.finish(last)
        assert checkpoints.steps == [1, 2]


@pytest.mark.fault(
    row=17,
    fault="the checkpoints' place cannot be written",
    promise="an error at the start that names it",
)
def test_row_17_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/steps"):
        Checkpoints(tmp_path / "file" / "steps")


def _replace(path):
    path.rename(path.with_name("moved"))
    (path / "steps").mkdir(parents=True)


@pytest.mark.fault(
    row=17,
    fault="the workdir is moved, removed or replaced while the run is writing to it",
    promise="an error at the next save that says so (Orbax would make it anew); nothing is written there",
)
@pytest.mark.parametrize(
    "change", [lambda path: path.rename(path.with_name("moved")), shutil.rmtree, _replace]
)
def test_row_17_a_workdir_that_is_moved_or_removed(tmp_path, change):
    root = tmp_path / "run"

    def batch_at(step):
        if step == 6:
            while not (root / "steps" / "4").exists():
                time.sleep(0.01)
            change(root)
        return tiny.batch_at(step)

    with pytest.raises(CheckpointError, match=r"run/steps was moved or removed .*as --workdir"):
        tiny.run(root, batch_at)
    assert [path.name for path in root.rglob("*")] == (["steps"] if change is _replace else [])


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


@pytest.mark.fault(
    row=30,
    fault="a leaf is missing, extra, or of another shape or dtype than the model's",
    promise="an error in the config that names the leaf (Orbax would cast); nothing is moved",
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_bias, "it has params/blocks/bias, which this model lacks"),
        (_with_more, "it has no params/blocks/scale"),
        (_retyped(shape=(3, 3)), r"params/blocks/kernel is float32\[64, 16\].*float32\[3, 3\]"),
        (_retyped(dtype=jnp.bfloat16), r"params/blocks/kernel is float32.*bfloat16"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_row_30_another_model(three, change, message):
    with (
        Checkpoints(three, keep=3) as checkpoints,
        pytest.raises(MismatchError, match=f"another model.*{message}") as caught,
    ):
        checkpoints.restore(change(toy.abstract_like(state_at(0))))
    assert isinstance(caught.value, ConfigError), "a launcher must not retry it"
    assert not (three / "corrupt").exists()


@pytest.mark.fault(
    row=30,
    fault="a stored key is of another PRNG implementation",
    promise="an error in the config that names the leaf and both implementations",
)
def test_row_30_a_key_of_another_implementation(tmp_path):
    def with_key(impl):
        return state_at(1).replace(context={"key": jax.random.key(0, impl=impl)})

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(with_key("threefry2x32"))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(MismatchError, match=r"context/key is key<fry>.*key<rbg>"),
    ):
        checkpoints.restore(toy.abstract_like(with_key("rbg")))
