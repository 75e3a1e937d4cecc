"""Programs on several virtual devices and in several processes of this machine."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from launch.local import environment, free_port, without_noise
from sdtt_jax.parallel.environment import virtual_devices
from tests.forking import ROOT, run_module, start_module


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


def call(processes: int, devices: int, *command: str) -> str:
    process = start(processes, devices, *command)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def environments(processes: int, devices: int) -> list[dict[str, str]]:
    """What `launch.local` sets for each process, but for what a fork cannot obey."""
    port = free_port()
    found = [environment(index, processes, devices, port) for index in range(processes)]
    return [{k: v for k, v in env.items() if k != "PYTHONUNBUFFERED"} for env in found]


def together(processes: int, devices: int, module: str, *arguments: str) -> list[str]:
    """The outputs of the processes, which must succeed; forked, which spares each the imports."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = [Path(folder) / str(index) for index in range(processes)]
        started = [
            start_module(module, arguments, [file, file], env)
            for file, env in zip(files, environments(processes, devices), strict=True)
        ]
        for process in started:
            stack.callback(process.kill)
        statuses = [process.wait(600) for process in started]
        written = [file.read_text("utf-8").splitlines(keepends=True) for file in files]
        outputs = ["".join(without_noise(lines)) for lines in written]
        assert not any(statuses), "\n".join(outputs)
        return outputs


def printed_by(module: str, *arguments: str) -> Any:
    """The JSON that a program on eight virtual devices prints."""
    done = run_module(module, arguments, virtual_devices(8))
    assert done.status == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
