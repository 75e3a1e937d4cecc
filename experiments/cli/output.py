"""What commands tell the shell: exit statuses, system errors, output into closed pipes. Imports no JAX."""

import contextlib
import errno
import io
import json
import logging
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sdtt_jax.errors import DataError

EXIT_CONFIG = 2
EXIT_FAILED = 1
# The status that a shell reports of a program that SIGPIPE has ended.
EXIT_PIPE = 128 + signal.SIGPIPE
# Prefixes of the modules whose errors say why a bucket did not answer.
_OF_BUCKETS = ("aiohttp.", "gcsfs.", "google.auth.", "google.api_core.", "botocore.")


def discard_output() -> None:
    """Drops what standard output and error cannot take; at exit, Python would try again and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_anywhere() -> None:
    """Lets everything be printed; characters that the terminal lacks appear as \\u2014 and the like.

    What is printed to a stream that the shell has closed (`2>&-`) is lost.
    """
    # Python has None there, for which `print` takes standard output, and the next file gets the free number.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def shorten(record: logging.LogRecord) -> bool:
    """A filter of log records that drops the stack from Orbax's message about a failed save.

    The error itself is raised, and says where and why.
    """
    if "orbax" in record.pathname:
        record.exc_info = record.exc_text = None
    return True


@contextlib.contextmanager
def writing(output: object) -> Iterator[None]:
    """Turns what the system refuses into a `DataError` that names --output."""
    try:
        yield
    except OSError as error:
        raise DataError(f"--output={output} cannot be written to: {error.strerror}.") from None


@contextlib.contextmanager
def json_lines(file: Path | None) -> Iterator[Callable[[Any], None]]:
    """A function that adds a line of JSON to a file; None is for no file.

    The first line replaces what the file held; an error before it does not change the file.
    """
    if file is None:
        yield lambda _: None
        return
    output: IO[str] | None = None

    def write(content: Any) -> None:
        nonlocal output
        with writing(file):
            output = output or file.open("w", encoding="utf-8")
            output.write(json.dumps(content) + "\n")
            output.flush()

    try:
        yield write
    finally:
        if output is not None:
            with writing(file):
                output.close()


def is_of_a_bucket(error: BaseException) -> bool:
    """Whether an error was raised on the way to a bucket: not reached, or not allowed."""
    return type(error).__module__.startswith(_OF_BUCKETS)


def system_error(error: Exception) -> str:
    """One line that says what the system, or a bucket's service, refused."""
    if is_of_a_bucket(error):
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        return (
            f"a bucket did not answer ({reason}); check its name, the network and the credentials (for "
            "gs://, gcloud auth application-default login)."
        )
    if not isinstance(error, OSError) or error.strerror is None:
        named = getattr(error, "filename", None)
        # TFDS's writers leave out what the system said.
        lost = f"{named} cannot be written or read; check whether the disk is full."
        return lost if named else str(error)
    full = "; free some space and run the same command again" * (error.errno == errno.ENOSPC)
    return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}{full}."


def missing_platform(error: Exception) -> tuple[str, int]:
    """A line that says that JAX found no device of its platform, and the status; ("", 0) for other errors."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    # What follows is JAX's own advice.
    said = re.split(r" \((?:set|you may need)", str(error))[0].rstrip(". ")
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and any("xla_bridge" in f.filename for f in frames):
        # JAX leaves out a platform that it knows and has no plugin for, and then asserts that one is left.
        said = "no plugin for it is installed"
    elif not isinstance(error, RuntimeError) or not said.startswith("Unable to initialize backend"):
        return "", 0
    if "gloo/transport/tcp/device.cc" in said:
        return (
            f"the processes cannot reach each other: this host's own name, {socket.gethostname()}, has no "
            f"address ({said.partition(': ')[2]}); add a line for it to /etc/hosts, such as "
            f"'127.0.0.1 {socket.gethostname()}' if all processes are on this host."
        ), EXIT_FAILED
    named = f" for JAX_PLATFORMS={asked}" if asked else ""
    # A device that another program holds may be free at the next attempt.
    unknown = said.startswith("no plugin") or "known backends" in said
    return (
        f"JAX finds no device{named} ({said}); install what that platform needs, or set JAX_PLATFORMS to "
        "another one, such as cpu."
    ), EXIT_CONFIG if unknown else EXIT_FAILED
