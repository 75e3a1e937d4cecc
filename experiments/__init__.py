"""The commands: each turns flags into calls of the library.

They may use `sdtt_jax`, which never imports them.
"""

import gc
import os
import signal
import sys
from types import FrameType


def stop_starting(_number: int, _frame: FrameType | None) -> None:
    """Handles Ctrl-C and SIGTERM until `run_app` does: in the imports, either would be a page of stack."""
    os.write(2, b"Stopped. Run the same command to start again.\n")
    os._exit(os.EX_TEMPFAIL)  # 75, as afterwards


# As long as Python looks for the program of `python -m experiments.…`.
if sys.argv[:1] == ["-m"]:
    signal.signal(signal.SIGTERM, stop_starting)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_starting)

import sdtt_jax.renamed  # noqa: E402, F401 - a module that has moved is answered by its new name

# Importing a program creates half a million objects, and none of them is garbage. Some 400 garbage
# collections took 0.3 of the 1.9 s of every start. (Python's own threshold is 700.)
gc.set_threshold(10_000, 20, 20)
