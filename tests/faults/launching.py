"""Victims in processes of their own, without a launcher that would end them itself."""

import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from sdtt_jax.parallel.environment import virtual_devices
from tests.forking import start_module
from tests.multidevice.launching import environments

PATIENCE = 120


class Victim:
    """One process of `tests.faults.victim`; its output can be read as it comes."""

    def __init__(self, directory: Path, *options: str, env: Mapping[str, str]):
        descriptor, file = tempfile.mkstemp(prefix="victim", dir=directory.parent)
        os.close(descriptor)
        self._file = Path(file)
        files = [self._file, self._file]
        arguments = [str(directory), *options]
        self.process = start_module("tests.faults.victim", arguments, files, env)

    @property
    def output(self) -> str:
        return self._file.read_text("utf-8")

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
            return self.process.wait(within)
        finally:
            self.process.kill()
            self.process.wait()


def several(directory: Path, *options: str, count: int = 2, start: int | None = None):
    """`count` processes of one job with a device each, of which the first `start` are started."""
    return [Victim(directory, *options, env=env) for env in environments(count, 1)[:start]]


def alone(directory: Path, *options: str, devices: int = 2) -> Victim:
    """One process with as many devices as `several` have."""
    return Victim(directory, *options, env=os.environ | virtual_devices(devices))
