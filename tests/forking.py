"""`python -m MODULE …` in a process of its own, forked after the imports that all commands share.

A command that finds its flags wrong takes 1.2 s, of which all but 0.05 s go into importing JAX and the
library. The server that forks has computed nothing, so there are no threads that a fork would lose.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
CPU = {"JAX_PLATFORMS": "cpu"}
# Prefixes of the variables that Python or the imported modules read only once.
READ_ONCE = ("JAX_", "PYTHON", "TF_", "XLA_")


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
    wanted = os.environ | CPU | (environment or {})
    context, known = _server()
    if _read_once(wanted) != known:
        return _alone(module, arguments, wanted, timeout)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = context.Process(target=_become, args=(module, arguments, dict(wanted), files))
        process.start()
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise TimeoutError(f"{module} took more than {timeout} s")
        finally:
            process.kill()
        return Finished(process.exitcode, *(file.read_text("utf-8") for file in files))


def _alone(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> Finished:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def _read_once(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_ONCE)}


@functools.cache
def _server() -> tuple[multiprocessing.context.ForkServerContext, dict[str, str]]:
    """The fork server, and what it read from the environment when it started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    forkserver.ensure_running()
    return context, _read_once(os.environ | CPU)


def _become(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[Path]
) -> None:
    """Turns the forked process into the command."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # `multiprocessing` ends its processes without running these.
        atexit._run_exitfuncs()
