"""The runner by several processes. Oracles: its files, and one process with as many devices."""

import json
import re
import signal
import time

import numpy as np
import pytest

from sdtt_jax.training.loop import EXIT_INTERRUPTED
from sdtt_jax.training.metrics import read_metrics
from tests.multidevice.launching import call, start
from tests.sharing import once

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]

# The whole pipeline at the smallest size: what is tested is who does what, not what is learned.
RUN = (
    "experiments.run",
    "--config=experiments/configs/smoke.py",
    "--config.teacher.train.num_steps=30",
    "--config.judge.train.num_steps=14",
    "--config.distill.num_rounds=1",
    "--config.distill.train.num_steps=14",
    "--config.evaluation.num_texts=16",
    "--config.evaluation.batch_size=16",
    "--config.evaluation.gain_sequences=16",
    "--config.evaluation.validation_sequences=16",
)


def stop_and_go_on(folder):
    """By two processes of two devices: stopped in the teacher's stage, and gone on with."""
    workdir = folder / "run"
    process = start(2, 2, *RUN, f"--workdir={workdir}")
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and read_metrics(metrics)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stopped, _ = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED, stopped
    return [stopped, call(2, 2, *RUN, f"--workdir={workdir}")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, (stopped, again) = once(tmp_path_factory, "by_processes", stop_and_go_on)
    return folder / "run", stopped, again


def test_stops_with_the_state_saved_by_all(finished):
    _, stopped, _ = finished
    steps = re.findall(r"^\[(\d)\] Stopped by SIGTERM after step (\d+)", stopped, re.MULTILINE)
    assert {number for number, _ in steps} == {"0", "1"}, stopped
    assert len({step for _, step in steps}) == 1, stopped


def test_goes_on_to_the_end(finished):
    workdir, _, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    assert [r["round"] for r in results["rounds"]] == [1]
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
