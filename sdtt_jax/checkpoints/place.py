"""Detects that a folder was moved or replaced while a run writes to it."""

import errno
import os
from pathlib import Path

from sdtt_jax.errors import CheckpointError
from sdtt_jax.paths import is_remote

# Error numbers for a folder that is gone; the last is that of an open folder on a network file system.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Place:
    """A folder that must not be moved while it is written to. Close it at the end.

    Writing creates missing folders. If the folder were moved meanwhile, a new one would be filled in its
    place, and each of the two would hold only a part. Folders in a bucket have no identity and are never
    lost.

    Args:
      directory: a folder that exists.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._handle = None if is_remote(directory) else os.open(directory, os.O_RDONLY)

    @property
    def lost(self) -> bool:
        """Whether the path now names another folder, or none."""
        if self._handle is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._handle), os.stat(self.directory))
        except OSError as error:
            # For any other fault, the error of writing says more.
            return error.errno in _GONE

    def check(self) -> None:
        """Raises `CheckpointError` if the folder was moved or removed."""
        if self.lost:
            raise CheckpointError(
                f"{self.directory} was moved or removed while the run was writing to it. If it was moved, "
                "repeat the command with its new path as --workdir; if it was removed, repeat the same "
                "command to start again."
            )

    def close(self) -> None:
        """Closes the handle of the folder."""
        if self._handle is not None:
            os.close(self._handle)
