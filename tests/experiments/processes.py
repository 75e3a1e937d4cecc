"""Entry points in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.forking import ROOT, Finished, run_module
from tests.sharing import once

SMOKE = "--config=experiments/configs/smoke.py"


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m experiments.MODULE …` from the repository's root."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(module: str, *arguments: str) -> Finished:
    """`python -m experiments.MODULE …`, to its end."""
    return run_module(f"experiments.{module}", arguments)


class SmokeRun(NamedTuple):
    root: Path
    finished: Finished


def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The smoke config from raw text to the report, never stopped; do not change it.

    Its output is kept beside it as well, where `tools.chaos` looks for it.
    """

    def make(folder: Path) -> Finished:
        finished = call("run", SMOKE, f"--workdir={folder}")
        assert finished.status == 0, finished.stderr
        folder.with_suffix(".log").write_text(finished.stdout + finished.stderr)
        return finished

    root, finished = once(tmp_path_factory, "smoke", make)
    return SmokeRun(root, Finished(*finished))
