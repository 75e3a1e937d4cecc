"""Ending together: processes learn that one has failed; process 0, working alone, that it must stop.

When a process is gone, JAX ends the others once its heartbeat has been silent for some time. A process that
fails is not gone: it waits five minutes for the others in JAX's shutdown, and they wait for it in a
computation. And JAX reports SIGTERM only where all processes ask together. Failures and SIGTERM are both
entered in the job's table of keys and values, where a thread looks for them.
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

from jax._src import distributed  # JAX has no public name for what it joined

from sdtt_jax.threads import beside

# The folder of keys for failed processes: each key is a process's number, its value the exit status.
FAILED = "sdtt_jax/failed/"
# The key under which JAX's own notifier tells all processes that one of them got SIGTERM.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"
# Seconds between two looks at the table; seconds in which a process may still end by itself, often with the
# same error; and seconds that process 0, which keeps the table, waits for the others to read it.
LOOK, GRACE, PATIENCE = 1.0, 5.0, 10.0


def is_alone() -> bool:
    """Whether this process has joined no others."""
    return _client() is None


def listen() -> None:
    """Starts to listen for the failure of another process, until the program ends."""
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
    with contextlib.suppress(Exception):  # The table may be what is gone.
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

    For work that one process does alone, in its main thread, so that the processes cannot ask together.
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
        with beside("notice", over, lambda: _interrupt(client, over)):
            yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _client() -> Any:
    """The connection to the job's table; None for a process that is alone."""
    state = distributed.global_state
    return state.client if (state.num_processes or 1) > 1 else None


def failed_elsewhere() -> tuple[str, int] | None:
    """A sentence about the first other process that has failed, if one has, and its exit status."""
    own = f"{FAILED}{distributed.global_state.process_id}"
    others = {key: status for key, status in _failed(_client()).items() if key != own}
    if not others:
        return None
    first = min(others)
    what = f"Process {first.removeprefix(FAILED)} has failed, and its output says why"
    return f"{what}; this one ends with it.", int(others[first])


def _listen(client: Any, over: threading.Event) -> None:
    own = f"{FAILED}{distributed.global_state.process_id}"
    while not over.wait(LOOK):
        failed = _failed(client)
        if not failed:
            continue
        if own in failed or over.wait(GRACE) or own in _failed(client):
            return
        found = failed_elsewhere()
        if found is None:  # the table went with process 0
            return
        message, status = found
        sys.stderr.write(f"Error: {message}\n")
        fail(status)


def _failed(client: Any) -> dict[str, str]:
    try:
        return dict(client.key_value_dir_get(FAILED))
    except Exception:
        # This process is alone, or the table has gone with process 0, and JAX ends this one.
        return {}


def _interrupt(client: Any, over: threading.Event) -> None:
    while not over.wait(LOOK):
        with contextlib.suppress(Exception):  # JAX raises as long as there is no notice.
            client.key_value_try_get(NOTICE)
            # Sent to the main thread, so that it also wakes from waiting for a file.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return
