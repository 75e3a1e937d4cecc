"""One whole run of the smoke config, made once for all tests that look at it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.experiments.processes import SMOKE, Finished, call


class SmokeRun(NamedTuple):
    root: Path
    finished: Finished


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The smoke config from raw text to the report, never stopped."""
    root = tmp_path_factory.mktemp("runs") / "unbroken"
    finished = call("run", SMOKE, f"--workdir={root}")
    assert finished.status == 0, finished.stderr
    return SmokeRun(root, finished)
