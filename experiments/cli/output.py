"""What commands say to the shell: exit statuses, and output that nobody may read. It imports no JAX."""

import io
import os
import signal
import sys

EXIT_CONFIG = 2
EXIT_FAILED = 1
# What a shell says of a program that SIGPIPE has ended.
EXIT_PIPE = 128 + signal.SIGPIPE


def discard_output() -> None:
    """Drops what standard output and error cannot take: at its exit Python would try again, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_anywhere() -> None:
    """Lets every character be printed: those that the terminal's encoding lacks as \\u2014 and the like."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
