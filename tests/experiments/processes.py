"""Entry points in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
SMOKE = "--config=experiments/configs/smoke.py"


class Finished(NamedTuple):
    status: int
    stdout: str
    stderr: str


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
    """As `start`, to its end."""
    process = start(module, *arguments)
    try:
        stdout, stderr = process.communicate(timeout=1500)
    except BaseException:
        process.kill()
        raise
    return Finished(process.returncode, stdout, stderr)
