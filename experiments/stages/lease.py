"""A lease on a directory in a bucket: its owner renews an object, as a lock there would outlive its owner."""

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdtt_jax.errors import DataError, UserError
from sdtt_jax.formats import parse_json, write_json
from sdtt_jax.threads import running

FILE = ".lease.json"
# Seconds between two renewals, and how many may be missed before the owner counts as dead.
RENEW, MISSED = 20.0, 3
# If two processes write at once, both see after this time who wrote last.
SETTLE = 1.0
LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def lease(root: Path, owner: str) -> Iterator[None]:
    """Holds a directory for as long as this process renews an object in it.

    Clocks are not compared: a process that finds the object watches whether it changes. So a run whose owner
    was killed can continue after `MISSED` renewals (a minute), and one whose owner ended can at once.

    The directory only needs to support writing whole files. `owner` describes this process to others.

    Raises:
      UserError: another process renews the object.
    """
    path, token = root / FILE, secrets.token_hex(8)
    before = _read(path)
    if before:
        LOG.warning(
            "%s was in use by %s; waiting to see whether it still is.", root, before.get("owner")
        )
        _refuse_if_renewed(path, before)
    _write(path, token, owner, 0)
    time.sleep(min(SETTLE, RENEW))
    now = _read(path)
    if now.get("token") != token:
        raise _refusal(path, now)
    over = threading.Event()
    try:
        with running("lease", over, lambda: _renew(path, token, owner, over)):
            yield
    finally:
        try:
            if _read(path).get("token") == token:
                path.unlink()
        except Exception as error:  # must not hide an error of the run; the lease expires by itself
            LOG.warning(
                "Cannot remove %s (%s); the next run waits until it has expired.", path, error
            )


def _renew(path: Path, token: str, owner: str, over: threading.Event) -> None:
    count = 0
    while not over.wait(RENEW):
        count += 1
        try:
            if _read(path).get("token", token) != token:
                # This process slept too long, and another took over: they must not both continue.
                LOG.error("%s was taken over by another run; stopping this one.", path.parent)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            _write(path, token, owner, count)
        # The errors of a bucket's library need not be an OSError (`gcsfs.retry.HttpError`), and without this
        # thread another run could take the directory.
        except Exception as error:
            LOG.warning("Cannot renew %s (%s); trying again.", path, error)


def _refuse_if_renewed(path: Path, before: dict[str, Any]) -> None:
    deadline = time.monotonic() + MISSED * RENEW
    while time.monotonic() < deadline:
        time.sleep(RENEW / 4)
        now = _read(path)
        if not now:
            return
        if now != before:
            raise _refusal(path, now)


def _refusal(path: Path, content: dict[str, Any]) -> UserError:
    owner = content.get("owner", "unknown process")
    return UserError(
        f"{path.parent} is in use by another run ({owner}); wait for it, or give another --workdir."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return {}
    except DataError:
        content = None
    return content if isinstance(content, dict) else {"owner": "unknown process"}


def _write(path: Path, token: str, owner: str, count: int) -> None:
    write_json(path, {"token": token, "owner": owner, "renewed": count}, indent=None)
