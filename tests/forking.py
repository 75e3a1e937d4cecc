"""`python -m MODULE …` in a process of its own, forked after the imports that all commands share.

A command that finds its flags wrong takes 1.2 s, of which all but 0.05 s go into importing JAX and the
library. The server that forks has computed nothing, so there are no threads that a fork would lose.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
CPU = {"JAX_PLATFORMS": "cpu"}
# Prefixes of the variables that Python or the imported modules read only once.
READ_ONCE = ("JAX_", "PYTHON", "TF_", "XLA_")
# Those among them that JAX reads when it joins a job or first needs a device; and one that is a setting of
# JAX, which the forked process changes.
COLLECTIVES = "JAX_CPU_COLLECTIVES_IMPLEMENTATION"
JOINING = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
READ_LATE = (*JOINING, "XLA_FLAGS", COLLECTIVES)


class Finished(NamedTuple):
    """The exit status and the output of a finished command."""

    status: int
    stdout: str
    stderr: str


def run_module(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    timeout: float = 1500,
) -> Finished:
    """Runs `python -m MODULE ARGUMENTS…` on a CPU from the repository's root, to its end.

    Args:
      module: the command's module, which can be imported from there.
      arguments: its command line.
      environment: variables added to this process's.
      timeout: seconds after which the command is killed and an error raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = start_module(module, arguments, files, os.environ | (environment or {}))
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return Finished(status, *(file.read_text("utf-8") for file in files))


def start_module(
    module: str,
    arguments: Sequence[str],
    files: Sequence[Path],
    environment: Mapping[str, str],
    prepare: Callable[[], None] | None = None,
) -> "Running | subprocess.Popen[bytes]":
    """Starts `python -m MODULE ARGUMENTS…` on a CPU; stdout and stderr are appended to two files, or to one.

    Args:
      environment: all of its variables, but for those that choose the CPU.
      prepare: what a forked process calls before it becomes the command.
    """
    wanted = dict(environment) | CPU
    context, known = _server()
    if _read_once(wanted) == known:
        process = context.Process(
            target=_become, name=module, args=(module, arguments, wanted, files, prepare)
        )
        process.start()
        return Running(process)
    with contextlib.ExitStack() as stack:
        stdout, stderr = (stack.enter_context(file.open("ab")) for file in files)
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=wanted, stdout=stdout, stderr=stderr)


class Running:
    """A forked process, with the methods of `subprocess.Popen`."""

    def __init__(self, process: multiprocessing.context.ForkServerProcess):
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _read_once(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_ONCE) and name not in READ_LATE
    }


@functools.cache
def _server() -> tuple[multiprocessing.context.ForkServerContext, dict[str, str]]:
    """The fork server, and what it read from the environment when it started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    forkserver.ensure_running()
    return context, _read_once(os.environ | CPU)


def _become(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    files: Sequence[Path],
    prepare: Callable[[], None] | None,
) -> None:
    """Turns the forked process into the command."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if COLLECTIVES in environment:
        import jax

        jax.config.update(COLLECTIVES.lower(), environment[COLLECTIVES])
    if prepare is not None:
        prepare()
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # `multiprocessing` ends its processes without running these.
        atexit._run_exitfuncs()
