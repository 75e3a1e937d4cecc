"""Locks on local files, which the operating system releases however their process ends."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO


def lock(file: BinaryIO, wait: bool = True) -> bool:
    """Whether the open file could be locked until it is closed; `wait` for another who has it."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def locked(path: Path) -> BinaryIO:
    """Makes a local file, if there is none, and locks it until it is closed; waits for another who has it."""
    while True:
        handle = path.open("ab")
        if not lock(handle):
            return handle
        # Whoever had it before removed the file at the end; then others lock a new one of the same name.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle
        handle.close()
