"""Ends all processes of a job when one fails, and interrupts a process that works alone at SIGTERM.

When a process disappears, JAX ends the others after a silence of its heartbeat. A process that fails does not
disappear: it waits up to five minutes in JAX's shutdown, while the others wait for it in a collective. And
JAX reports SIGTERM only to calls that all processes make together. So both failures and SIGTERM are entered
in the job's key-value store, which a thread of each process polls.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from jax._src import distributed  # JAX has no public name for the job it joined

from sdtt_jax.threads import running

# Prefix of the keys of failed processes; a process's number follows. The value is its exit status.
FAILED = "sdtt_jax/failed/"
# The key under which JAX's own notifier tells all processes that one of them got SIGTERM.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"
# Seconds between two polls of the store; seconds in which a process may still end by itself, often with the
# same error; and seconds that process 0, which holds the store, waits for the others to read it.
LOOK, GRACE, PATIENCE = 1.0, 5.0, 10.0


def is_alone() -> bool:
    """Whether this process is not part of a job of several."""
    return _client() is None


def listen() -> None:
    """Starts a thread that ends this process once another one has failed; it runs until the program ends."""
    if is_alone():
        return
    over = threading.Event()
    thread = threading.Thread(target=_listen, args=(_client(), over), name="ending", daemon=True)

    def stop() -> None:
        over.set()
        thread.join()

    # Runs before JAX leaves the job, because JAX registered that earlier, when it was imported.
    atexit.register(stop)
    thread.start()


def fail(status: int) -> None:
    """Ends this process with an exit status, and the others of its job; returns if it is alone."""
    client = _client()
    if client is None:
        return
    number = distributed.global_state.process_id
    with contextlib.suppress(Exception):  # The store itself may be gone.
        client.key_value_set(f"{FAILED}{number}", str(status), allow_overwrite=True)
        deadline = time.monotonic() + PATIENCE
        while number == 0 and time.monotonic() < deadline:
            if len(client.key_value_dir_get(FAILED)) >= distributed.global_state.num_processes:
                break
            time.sleep(LOOK / 10)
    leave(status)


def leave(status: int) -> None:
    """Ends this process now, after flushing its output.

    On a regular exit JAX would wait for the other processes, which wait for this one. It would also free what
    running computations need, which ends in a segmentation fault.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(status)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt in the block if any process of the job gets SIGTERM meanwhile.

    For work that one process does alone, in its main thread: the collective check, `processes.preempted`,
    cannot be made there.
    """
    client = _client()
    if client is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def interrupt(_number: int, _frame: Any) -> None:
        if not over.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with running("notice", over, lambda: _interrupt(client, over)):
            yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _client() -> Any:
    """The client of the job's key-value store; None for a process that is alone."""
    state = distributed.global_state
    return state.client if (state.num_processes or 1) > 1 else None


def failed_elsewhere() -> tuple[str, int] | None:
    """A sentence about another process that has failed, and its exit status; None if none has.

    Of several, it is the one with the lowest number.
    """
    own, failed = distributed.global_state.process_id, _failed(_client())
    statuses = {int(key.removeprefix(FAILED)): int(status) for key, status in failed.items()}
    others = sorted(statuses.keys() - {own})
    if not others:
        return None
    what = f"Process {others[0]} has failed, and its output says why"
    return f"{what}; this one ends with it.", statuses[others[0]]


def _listen(client: Any, over: threading.Event) -> None:
    own = f"{FAILED}{distributed.global_state.process_id}"
    while not over.wait(LOOK):
        failed = _failed(client)
        if not failed:
            continue
        if own in failed or over.wait(GRACE) or own in _failed(client):
            return
        found = failed_elsewhere()
        if found is None:  # the store ended with process 0
            return
        message, status = found
        sys.stderr.write(f"Error: {message}\n")
        fail(status)


def _failed(client: Any) -> dict[str, str]:
    try:
        return dict(client.key_value_dir_get(FAILED))
    except Exception:
        # This process is alone, or the store ended with process 0, and JAX ends this one.
        return {}


def _interrupt(client: Any, over: threading.Event) -> None:
    while not over.wait(LOOK):
        with contextlib.suppress(Exception):  # JAX raises as long as there is no notice.
            client.key_value_try_get(NOTICE)
            # Sent to the main thread, so that it also interrupts a wait for a file.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return
