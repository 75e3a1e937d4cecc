"""Checkpoints that are not taken, in a bucket. For damage and failures on a disk see tests/faults."""

import pytest

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


@pytest.fixture
def three(bucket, request):
    """Checkpoints at steps 1, 2, 3 in a folder of the bucket, to be damaged."""
    return save_three(bucket / request.node.name)


def test_a_damaged_one_is_moved_aside_and_never_forgotten(three):
    """As on a disk. Oracle: the states that were saved, and what was damaged."""
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
