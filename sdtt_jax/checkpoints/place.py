"""Whether a folder is still the one that it was when the writing to it began."""

import errno
import os
from pathlib import Path

from sdtt_jax.errors import CheckpointError
from sdtt_jax.paths import is_remote

# What a disk says of a folder that is gone; the last is a network file system's, of an open one.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Place:
    """A folder that must stay where it is while it is written to. Close it at the end.

    Writing makes missing folders. If somebody moves a folder that is written to, a new one would be filled in
    its place, and what is in either is only a part. Folders in a bucket have no identity: they are never
    lost.

    Args:
      directory: a folder that exists.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._handle = None if is_remote(directory) else os.open(directory, os.O_RDONLY)

    @property
    def lost(self) -> bool:
        """Whether the path names another folder by now, or none."""
        if self._handle is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._handle), os.stat(self.directory))
        except OSError as error:
            # Of any other fault, writing tells more.
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
        """Lets go of the folder."""
        if self._handle is not None:
            os.close(self._handle)
