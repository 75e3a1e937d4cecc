"""Victims in processes of their own, without a launcher that would end them itself."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from launch.local import environment, free_port

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120


class Victim:
    """One process of `tests.faults.victim`; its output is read as it comes."""

    def __init__(self, directory: Path, *options: str, env: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim", str(directory), *options],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def output(self) -> str:
        return "".join(list(self.lines))

    def found(self, pattern: str) -> str | None:
        match = re.search(pattern, self.output, re.MULTILINE)
        return match and match[1]

    def wait_for(self, condition) -> None:
        """Waits until `condition()`; fails the test if the process ends before or takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def wait_for_line(self, pattern: str) -> None:
        self.wait_for(lambda: self.found(f"({pattern})"))

    def end(self, within: float = PATIENCE) -> int:
        """Waits for the process to end and returns its exit status."""
        try:
            status = self.process.wait(within)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            self.process.stdout.close()
        return status


def several(directory: Path, *options: str, count: int = 2, start: int | None = None):
    """`count` processes of one job with a device each, of which the first `start` are started."""
    port = free_port()
    return [
        Victim(directory, *options, env=environment(index, count, 1, port))
        for index in range(count if start is None else start)
    ]


def alone(directory: Path, *options: str, devices: int = 2) -> Victim:
    """One process with as many devices as `several` have."""
    env = environment(0, 1, devices, 0)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        del env[name]
    return Victim(directory, *options, env=env)
