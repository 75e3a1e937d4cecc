"""Runs an entry point in several JAX processes on this machine, as a pod runs it on many.

  python -m launch.local --processes=2 --devices_per_process=4 \\
      -- experiments.run --config=… --workdir=…

What follows `--` is a module of this checkout and its arguments, or any command. The processes find
each other through JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and compute on
virtual CPU devices with gloo collectives. Each line of output begins with the number of its
process. When one process fails, the others are stopped. Ctrl-C or SIGTERM asks all of them to save
and stop; a second one kills them.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

from absl import app, flags

from experiments.cli.output import EXIT_CONFIG, discard_output, print_anywhere
from sdtt_jax.errors import EXIT_INTERRUPTED
from sdtt_jax.parallel.environment import ADDRESS, COUNT, INDEX, virtual_devices

_PROCESSES = flags.DEFINE_integer("processes", 2, "Processes.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices_per_process", 1, "Virtual CPU devices of each process.", lower_bound=1
)
_GRACE = flags.DEFINE_integer(
    "grace_seconds", 60, "Seconds that processes have to save and stop before they are killed."
)

# Seconds after which the others are stopped when one has failed: they would wait for it for ever.
FAILURE_GRACE = 10
PR_SET_PDEATHSIG = 1
# The pieces of gloo's line about each device whenever a computation is compiled:
#   [Gloo] Rank 1 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3
# Its threads write the pieces one by one, so that the lines of several run into each other.
NOISE = re.compile(
    r"[\d ]*(?:\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :)[\d ]*"
)


def command_line(arguments: Sequence[str]) -> list[str]:
    """The command to run: a module name (dots, no slash) is run by this Python."""
    first = arguments[0]
    if first in ("python", "python3"):
        return [sys.executable, *arguments[1:]]
    if all(part.isidentifier() for part in first.split(".")) and "." in first:
        return [sys.executable, "-m", *arguments]
    return list(arguments)


def environment(index: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """The environment of process `index`."""
    return os.environ | {
        ADDRESS: f"127.0.0.1:{port}",
        COUNT: str(processes),
        INDEX: str(index),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONUNBUFFERED": "1",
        **virtual_devices(devices),
    }


class Group:
    """A group of processes, from their start until all have ended."""

    def __init__(self, command: Sequence[str], processes: int, devices: int):
        port = free_port()
        self._asked = 0
        self._processes = [
            subprocess.Popen(
                command,
                env=environment(index, processes, devices, port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Shields them from Ctrl-C in the terminal: the launcher gets it and passes it on once.
                start_new_session=True,
                # Safe: this process has no other threads yet.
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
            for index in range(processes)
        ]
        self._readers = [
            threading.Thread(target=_prefix, args=(index, process), daemon=True)
            for index, process in enumerate(self._processes)
        ]
        for reader in self._readers:
            reader.start()

    def ask_to_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handler of SIGINT and SIGTERM."""
        self._asked += 1
        if self._asked == 1:
            _log(f"{signal.Signals(number).name}: asking all processes to save and stop")
            self._send(signal.SIGTERM)
        else:
            self._send(signal.SIGKILL)

    def wait(self, grace: float) -> int:
        """Waits for all processes, stops the rest when one fails, and returns the first failure's status."""
        first_failure: int | None = None
        deadline: float | None = None
        while any(process.poll() is None for process in self._processes) or (
            # What a script runs may still be saving: its output has not ended.
            bool(self._asked or deadline) and any(reader.is_alive() for reader in self._readers)
        ):
            for index, process in enumerate(self._processes):
                status = process.poll()
                if status in (None, 0) or first_failure is not None:
                    continue
                first_failure = status
                # Asked twice, the others would end without saving.
                if status == EXIT_INTERRUPTED or self._asked:
                    deadline = time.monotonic() + grace
                else:
                    _log(f"process {index} ended with {describe(status)}; stopping the others")
                    self._send(signal.SIGTERM)
                    deadline = time.monotonic() + min(grace, FAILURE_GRACE)
            if self._asked and deadline is None:
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                _log("killing the processes that have not stopped")
                self._send(signal.SIGKILL)
                break
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(timeout=5)
        statuses = [process.wait() for process in self._processes]
        status = next((s for s in (first_failure, *statuses) if s), 0)
        return 128 - status if status < 0 else status

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            # A script does not pass a signal on to the program that it runs, and ends before it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)


def describe(status: int) -> str:
    """An exit status of `subprocess` in words."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def without_noise(lines: Iterable[str]) -> Iterator[str]:
    """The lines without what gloo writes: its lines, their stray ends, and pieces inside other lines."""
    unended = 0
    for line in lines:
        rest, pieces = NOISE.subn("", line)
        end_of_theirs = bool(pieces or unended) and not rest.strip(" \n0123456789")
        if pieces or end_of_theirs:
            unended = max(0, unended + line.count("[Gloo] Rank") - end_of_theirs)
        if not end_of_theirs:
            yield rest


def _prefix(index: int, process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for line in without_noise(process.stdout):
        try:
            # One write for a whole line, so that lines of different processes do not mix.
            sys.stdout.write(f"[{index}] {line.rstrip()}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # Nobody reads this output any more (`| head`). The processes are asked to stop. Until they do,
            # their output is still read, or they would block.
            discard_output()
            os.kill(os.getpid(), signal.SIGTERM)


def _log(message: str) -> None:
    sys.stderr.write(f"[launch.local] {message}\n")
    sys.stderr.flush()


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    # So no process is left behind even if this launcher is killed with SIGKILL.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """The arguments in `argv` that are not flags; a wrong flag ends the program with one line."""
    try:
        return list(flags.FLAGS(argv))
    except flags.Error as error:
        sys.stderr.write(f"Error: {error} (see --help)\n")
        sys.exit(EXIT_CONFIG)
    except SystemExit:  # raised for --help, which absl treats as a failure
        sys.exit(0)


def main(argv: Sequence[str]) -> int:
    """Runs the command that follows `--`."""
    arguments = list(argv[1:])
    if not arguments:
        sys.stderr.write("Error: nothing to run; give a module and its arguments after `--`.\n")
        return EXIT_CONFIG
    try:
        group = Group(command_line(arguments), _PROCESSES.value, _DEVICES.value)
    except OSError as error:
        sys.stderr.write(f"Error: cannot run {arguments[0]}: {error.strerror}.\n")
        return EXIT_CONFIG
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, group.ask_to_stop)
    return group.wait(_GRACE.value)


if __name__ == "__main__":
    print_anywhere()
    app.run(main, flags_parser=parse_flags)
