"""The short form of `tools.chaos`: the whole pipeline, killed twice. Oracle: the run left alone."""

import re
import signal
import subprocess
import sys

import pytest

from tests.experiments.processes import smoke_run
from tests.forking import ROOT, run_module


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    row=1,
    fault="kill -9 at random moments of the whole pipeline (the short form of tools.chaos)",
    promise="parameters of teacher, judge and rounds, metrics, texts, results: bit for bit the unbroken's",
)
def test_row_01_kills_at_random_moments(tmp_path_factory, tmp_path):
    unbroken, _ = smoke_run(tmp_path_factory)  # other tests look at it too
    # With this seed both kills meet the same run, the first in round 1, the second in round 2.
    options = (f"--unbroken={unbroken}", "--kills=2", "--seed=1299")
    done = run_module("tools.chaos", [f"--directory={tmp_path}", *options])
    assert done.status == 0, done.stderr
    assert re.search(r"2 kills in \d runs: everything is the same, bit for bit", done.stderr)


# The module defines flags, so it is imported by a process of its own.
LEFT = """
import pathlib, sys
from tools import chaos
run = chaos.RestartedRun(pathlib.Path(sys.argv[1]), "none.py", ())
try:
    with run.started() as process:
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print(process.returncode, run.log_file.name, run.log_file.exists())
"""


def test_a_run_that_is_left_is_killed(tmp_path):
    """As after Ctrl-C, which does not reach the run; its output goes beside its directory."""
    command = [sys.executable, "-c", LEFT, str(tmp_path / "v1.0")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(-signal.SIGKILL), "v1.0.log", "True"], done.stderr


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    done = run_module("tools.chaos", [f"--directory={tmp_path}"])
    assert done.status == 2
    assert f"Error: {tmp_path} is not empty" in done.stderr
