"""Programs in several processes of this machine, by `launch.local`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def start(processes: int, devices: int, *command: str) -> subprocess.Popen:
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
