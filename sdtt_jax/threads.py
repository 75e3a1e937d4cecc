"""Runs a function in a background thread for the length of a block."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def running(name: str, over: threading.Event, work: Callable[[], None]) -> Iterator[None]:
    """Runs `work` in a daemon thread during the block; then sets `over` and waits for the thread.

    Args:
      name: the thread's name.
      over: set when the block ends, to end the thread.
      work: the function; returns soon after `over` is set.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
