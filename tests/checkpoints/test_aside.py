"""Checkpoints that are not taken, in a bucket. For damage and failures on a disk see tests/faults."""

import pytest

from sdtt_jax.checkpoints.aside import refuse_uncommitted
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.errors import CheckpointError
from sdtt_jax.paths import remove_tree
from tests.buckets import files
from tests.checkpoints.stored import metadata_file, restore, save_three, state_at
from tests.training import toy

pytestmark = [
    # Warnings of gcsfs and its dependencies about each other.
    pytest.mark.filterwarnings("ignore:::google"),
    pytest.mark.filterwarnings("ignore:::gcsfs"),
    # Orbax leaves coroutines behind when it meets damaged files.
    pytest.mark.filterwarnings("ignore:.*coroutine.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def test_a_damaged_one_is_moved_aside_and_never_forgotten(bucket):
    """As on a disk. Oracle: the states that were saved, and what was damaged."""
    three = save_three(bucket / "damaged")
    metadata = metadata_file(three / "3")
    metadata.write_text("{")
    with Checkpoints(three, keep=3) as checkpoints:
        state, _ = checkpoints.restore(toy.abstract_like(state_at(0)))
        toy.assert_same(state, state_at(2))
        assert checkpoints.save(state_at(3))
    toy.assert_same(restore(three)[0], state_at(3))
    [kept] = [path for path in (three / "corrupt").iterdir() if path.is_dir()]
    assert kept.name.startswith("3-")
    assert metadata_file(kept).read_text() == "{"
    assert len(files(kept)) == len(files(three / "3"))
    for step in (1, 2, 3):
        remove_tree(three / str(step))
    with pytest.raises(CheckpointError, match="only damaged checkpoints"):
        restore(three)


def test_those_that_were_copied_without_one_of_their_files_are_refused_and_stay(bucket):
    """Orbax would take each for the rest of a killed save, remove it, and the run would begin anew."""
    folder = bucket / "copied"
    for step in (1, 2):
        (folder / str(step)).mkdir(parents=True, exist_ok=True)
        (folder / str(step) / "array").write_text("half")
        if step == 1:
            refuse_uncommitted(folder)  # A killed first save is no such case.
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints .*incompletely.*copy them"):
        restore(folder)
    assert [file.name for file in files(folder)] == ["array", "array"]
    (folder / "1" / "commit_success.txt").write_text("")
    refuse_uncommitted(folder)
