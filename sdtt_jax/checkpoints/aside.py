"""Checkpoints that are not restored: damaged ones are moved to corrupt/, uncommitted ones are refused."""

import time
from collections.abc import Iterable
from pathlib import Path

from sdtt_jax.checkpoints.orbax import COMMITTED, is_committed
from sdtt_jax.errors import CheckpointError
from sdtt_jax.paths import is_remote

CORRUPT = "corrupt"


def move_aside(directory: Path, steps: Iterable[int]) -> None:
    """Moves the folders of these steps into `directory/corrupt`."""
    corrupt = directory / CORRUPT
    corrupt.mkdir(exist_ok=True)
    if is_remote(directory):
        # A bucket has no empty folders, and nothing can be moved into a folder that does not exist. Also,
        # when Orbax next opens the directory, it removes the folders that do not hold this file.
        (corrupt / COMMITTED).write_text("Damaged checkpoints were moved here.\n")
    now = time.strftime("%Y%m%dT%H%M%S")
    for step in steps:
        (directory / str(step)).rename(corrupt / f"{step}-{now}")


def any_aside(directory: Path) -> bool:
    """Whether `directory/corrupt` holds a checkpoint."""
    corrupt = directory / CORRUPT
    return corrupt.is_dir() and any(path.is_dir() for path in corrupt.iterdir())


def refuse_uncommitted(directory: Path) -> None:
    """Refuses a folder in a bucket with several checkpoints, all uncommitted, which Orbax would delete.

    One uncommitted checkpoint comes from a killed save; several come from an incomplete copy.

    Raises:
      CheckpointError: it is such a folder.
    """
    if not is_remote(directory) or not directory.is_dir():
        return
    steps = [path for path in directory.iterdir() if path.name.isdigit()]
    if len(steps) > 1 and not any(map(is_committed, steps)):
        raise CheckpointError(
            f"{directory} holds {len(steps)} checkpoints that were copied incompletely (none has its "
            f"{COMMITTED}); copy them again, with all files, or remove the directory to start again."
        )
