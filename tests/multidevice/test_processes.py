"""Several processes over gloo. Oracle: one process with as many devices, and the unbroken run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sdtt_jax.training.loop import EXIT_INTERRUPTED
from sdtt_jax.training.metrics import read_metrics

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.multidevice, pytest.mark.slow]

# The whole pipeline at the smallest size: what is tested is who does what, not what is learned.
RUN = (
    "experiments.run",
    "--config=experiments/configs/smoke.py",
    "--config.teacher.train.num_steps=30",
    "--config.judge.train.num_steps=14",
    "--config.distill.train.num_steps=14",
    "--config.evaluation.num_texts=16",
    "--config.evaluation.batch_size=16",
    "--config.evaluation.gain_sequences=16",
    "--config.evaluation.validation_sequences=16",
)


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


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The same programs by 1, 2 and 4 processes of 8 devices in all, each going on from the one before."""
    folder = tmp_path_factory.mktemp("processes")
    found, before = {}, []
    for count in (1, 2, 4):
        here = folder / str(count)
        arguments = ("tests.multidevice.processes", str(here), *before)
        output = call(count, 8 // count, *arguments)
        (line,) = re.findall(r"^\[0\] ({.*})$", output, re.MULTILINE)
        found[count] = json.loads(line)
        before = [str(here)]
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_processes_compute_what_one_process_does(results, count):
    one, several = results[1], results[count]
    assert several["processes"] == count
    assert several["initial"] == one["initial"]
    for stage in ("teacher", "distill"):
        np.testing.assert_allclose(several[f"{stage} losses"], one[f"{stage} losses"], rtol=2e-5)
        assert several[f"{stage} collectives"] == one[f"{stage} collectives"]


@pytest.mark.parametrize(("saved", "count"), [(1, 2), (2, 4)])
def test_a_checkpoint_goes_on_with_another_number_of_processes(results, saved, count):
    assert results[count]["restored"] == results[saved]["digest"]
    assert results[count]["went on"] == pytest.approx(results[2]["went on"], rel=1e-3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The runner, by two processes of two devices: stopped in the teacher's stage, and gone on with."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    process = start(2, 2, *RUN, f"--workdir={workdir}")
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and read_metrics(metrics)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stopped, _ = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED, stopped
    again = call(2, 2, *RUN, f"--workdir={workdir}")
    return workdir, stopped, again


def test_stops_with_the_state_saved_by_all(finished):
    _, stopped, _ = finished
    steps = re.findall(r"^\[(\d)\] Stopped by SIGTERM after step (\d+)", stopped, re.MULTILINE)
    assert {number for number, _ in steps} == {"0", "1"}, stopped
    assert len({step for _, step in steps}) == 1, stopped


def test_goes_on_to_the_end(finished):
    workdir, _, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    assert [r["round"] for r in results["rounds"]] == [1, 2]
    assert (workdir / "report.html").exists()
    steps = [m["step"] for m in read_metrics(workdir / "metrics.jsonl") if m["stage"] == "teacher"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30


def test_process_0_alone_speaks(finished):
    _, _, again = finished
    lines = [line for line in again.splitlines() if line.startswith("[1]")]
    assert not lines, lines


def test_the_global_batches_do_not_depend_on_the_number_of_processes(finished, tmp_path):
    """The same run by one process: losses agree to rounding, step by step."""
    workdir, _, _ = finished
    call(1, 4, *RUN, f"--workdir={tmp_path / 'one'}", "--stages=data,teacher")
    one, two = (
        [m["loss"] for m in read_metrics(path / "metrics.jsonl") if m["stage"] == "teacher"]
        for path in (tmp_path / "one", workdir)
    )
    np.testing.assert_allclose(two[-1], one[-1], rtol=1e-2)
