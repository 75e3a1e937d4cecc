"""One whole run of the smoke config, made once for all tests that look at it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.experiments.processes import SMOKE, Finished, call
from tests.sharing import once


class SmokeRun(NamedTuple):
    root: Path
    finished: Finished


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The smoke config from raw text to the report, never stopped; do not change it."""

    def make(folder: Path) -> Finished:
        finished = call("run", SMOKE, f"--workdir={folder}")
        assert finished.status == 0, finished.stderr
        return finished

    root, finished = once(tmp_path_factory, "smoke", make)
    return SmokeRun(root, Finished(*finished))
