"""Entry points in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.sharing import once

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


class SmokeRun(NamedTuple):
    root: Path
    finished: Finished


def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The smoke config from raw text to the report, never stopped; do not change it.

    What it printed lies beside it as well, where `tools.chaos` looks for it.
    """

    def make(folder: Path) -> Finished:
        finished = call("run", SMOKE, f"--workdir={folder}")
        assert finished.status == 0, finished.stderr
        folder.with_suffix(".log").write_text(finished.stdout + finished.stderr)
        return finished

    root, finished = once(tmp_path_factory, "smoke", make)
    return SmokeRun(root, Finished(*finished))


# Every command line still has a process of its own, but the imports, two seconds of CPU time, are shared.
# That works as long as nothing was computed before: there are no threads yet that a fork would lose.
FORKS = """
import ast, importlib, importlib.util, json, os, runpy, sys, tempfile
module, command_lines = sys.argv[1], json.loads(sys.argv[2])
with open(importlib.util.find_spec(module).origin) as file:
    for node in ast.parse(file.read()).body:
        if isinstance(node, ast.ImportFrom):
            importlib.import_module(node.module)
found = []
for command_line in command_lines:
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if child == 0:
        for descriptor, file in enumerate(files, 1):
            os.dup2(file.fileno(), descriptor)
        sys.argv[1:] = command_line
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in files:
        file.seek(0)
    found.append([status, *(file.read() for file in files)])
print(json.dumps(found))
"""


def call_each(module: str, command_lines: Sequence[Sequence[str]]) -> list[Finished]:
    """`python -m MODULE …` with each of several command lines that end before anything is computed."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, module, json.dumps(command_lines)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Finished(*found) for found in json.loads(done.stdout)]
