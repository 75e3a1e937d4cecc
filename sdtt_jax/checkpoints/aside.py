"""Folders of checkpoints that are not taken: moved aside because damaged, or never committed in a bucket."""

import time
from collections.abc import Iterable
from pathlib import Path

from sdtt_jax.checkpoints.orbax import COMMITTED
from sdtt_jax.paths import is_remote

CORRUPT = "corrupt"


def move_aside(directory: Path, steps: Iterable[int]) -> None:
    """Moves the folders of these steps into `directory/corrupt`."""
    corrupt = directory / CORRUPT
    corrupt.mkdir(exist_ok=True)
    if is_remote(directory):
        # A bucket has no empty folders, and nothing can be moved into one that is not there. Besides, the
        # next time that Orbax opens the directory it removes the folders that do not hold this file.
        (corrupt / COMMITTED).write_text("Damaged checkpoints were moved here.\n")
    now = time.strftime("%Y%m%dT%H%M%S")
    for step in steps:
        (directory / str(step)).rename(corrupt / f"{step}-{now}")


def any_aside(directory: Path) -> bool:
    """Whether `directory/corrupt` holds a checkpoint."""
    corrupt = directory / CORRUPT
    return corrupt.is_dir() and any(path.is_dir() for path in corrupt.iterdir())
