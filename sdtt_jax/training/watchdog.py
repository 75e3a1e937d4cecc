"""Ends a process that has stopped making progress, with the stacks of all its threads in the log."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from sdtt_jax.threads import running

# The status of any failure that a retry may fix: the same command continues from the last
# checkpoint.
EXIT_HUNG = 1
STDERR = 2


@contextlib.contextmanager
def watchdog(seconds: float, what: str) -> Iterator[Callable[[], None]]:
    """Ends the process unless the function that it yields is called every `seconds`.

    A step that waits for a lost process, a deadlocked thread or a dead disk never raises. A hung process
    holds up all others of its job, and each has its own watchdog, so all end within one and a half times
    `seconds`, whether or not they can still reach each other. The time for which the process itself was
    stopped (Ctrl-Z) does not count, if it is less than 15/8 of `seconds`.

    Args:
      seconds: longest time between two calls; the first of them may include a compilation. 0 watches
        nothing.
      what: the subject of the message, for example "a training step".

    Yields:
      A function to call after any progress; it only notes the time.
    """
    if not seconds:
        yield lambda: None
        return
    last = looked = time.monotonic()
    over = threading.Event()

    def beat() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        nonlocal last, looked
        while not over.wait(seconds / 8):
            # The whole process was suspended (Ctrl-Z, a sleeping machine), which is not a hang.
            now = time.monotonic()
            if now - looked > seconds / 4:
                last = now
            looked = now
            # Where native code holds the interpreter's lock, this thread is stuck too. Then faulthandler's
            # timer, which needs no lock, ends the process, without the message.
            faulthandler.dump_traceback_later(2 * seconds, file=STDERR, exit=True)
            if time.monotonic() - last > seconds:
                _warn(seconds, what)
                # The other processes of the job hang at the same step. They get time for their own message,
                # since the end of this process will end them.
                time.sleep(seconds / 4)
                # Not sys.exit: it would wait for the very threads that hang.
                os._exit(EXIT_HUNG)

    try:
        with running("watchdog", over, watch):
            yield beat
    finally:
        faulthandler.cancel_dump_traceback_later()


def _warn(seconds: float, what: str) -> None:
    sys.stderr.write(
        f"Error: {what} has not finished within {seconds:g} s; ending this process. Run the same command to "
        "resume from the last checkpoint. What every thread was doing:\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback(file=STDERR, all_threads=True)
