"""Programs on several virtual devices and in several processes of this machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.local import environment, free_port, without_noise
from sdtt_jax.errors import EXIT_INTERRUPTED
from sdtt_jax.parallel.environment import virtual_devices
from tests.compiling import compiled_by_the_first
from tests.forking import ROOT, run_module, start_module

UNBUFFERED = "PYTHONUNBUFFERED"


def start(processes: int, devices: int, *command: str) -> subprocess.Popen:
    """Starts them under `launch.local`."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch.local",
            f"--processes={processes}",
            f"--devices_per_process={devices}",
            "--",
            *command,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def environments(processes: int, devices: int) -> list[dict[str, str]]:
    """What `launch.local` sets for each process, but for what a fork cannot obey: if Python shall buffer."""
    port = free_port()
    found = [environment(index, processes, devices, port) for index in range(processes)]
    buffering = {k: v for k, v in os.environ.items() if k == UNBUFFERED}
    return [{k: v for k, v in env.items() if k != UNBUFFERED} | buffering for env in found]


def together(
    processes: int,
    devices: int,
    module: str,
    *arguments: str,
    stop_when: Callable[[], bool] | None = None,
) -> list[str]:
    """The outputs of the processes, which must succeed.

    They are forked, which spares each the imports, and the first of them compiles for all.

    With `stop_when`, all of them get SIGTERM once it is true, and must say that they were interrupted.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = [Path(folder) / str(index) for index in range(processes)]
        started = [
            start_module(module, arguments, [file, file], env, compiled_by_the_first)
            for file, env in zip(files, environments(processes, devices), strict=True)
        ]
        for process in started:
            stack.callback(process.kill)
        if stop_when is not None:
            deadline = time.monotonic() + 400
            while not stop_when() and all(process.poll() is None for process in started):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for process in started:
                process.send_signal(signal.SIGTERM)
        expected = 0 if stop_when is None else EXIT_INTERRUPTED
        statuses = [process.wait(600) for process in started]
        written = [file.read_text("utf-8").splitlines(keepends=True) for file in files]
        outputs = ["".join(without_noise(lines)) for lines in written]
        assert statuses == [expected] * processes, "\n".join(outputs)
        return outputs


def printed_by(module: str, *arguments: str) -> Any:
    """The JSON that a program on eight virtual devices prints."""
    done = run_module(module, arguments, virtual_devices(8))
    assert done.status == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
