"""The runner by several processes. Oracles: its files, and one process with as many devices."""

import functools
import json
import re
import signal
import time

import numpy as np
import pytest

from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import load_params
from sdtt_jax.errors import EXIT_INTERRUPTED
from sdtt_jax.training.metrics import read_metrics
from tests.multidevice.launching import start, together
from tests.sharing import once

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]

RUN = ("experiments.run", "--config=experiments/configs/smoke.py")


def stop_and_go_on(folder, options):
    """Runs two processes of two devices, stops them in the teacher's stage, and resumes the run.

    The outputs: of the launcher that was stopped, and of each process that went on.
    """
    workdir = folder / "run"
    process = start(2, 2, *RUN, *options, f"--workdir={workdir}")
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and read_metrics(metrics)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stopped, _ = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED, stopped
    return [stopped, together(2, 2, *RUN, *options, f"--workdir={workdir}")]


@pytest.fixture(scope="module")
def finished(shortest, tmp_path_factory):
    make = functools.partial(stop_and_go_on, options=shortest)
    folder, (stopped, again) = once(tmp_path_factory, "by_processes", make)
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
    assert steps[-1] == 20


def test_process_0_alone_speaks(finished):
    _, _, (first, second) = finished
    assert first
    assert not second


def test_the_global_batches_do_not_depend_on_the_number_of_processes(finished, shortest, tmp_path):
    """The same run by one process: the teacher's last losses agree to 1 %."""
    workdir, _, _ = finished
    together(1, 4, *RUN, *shortest, f"--workdir={tmp_path / 'one'}", "--stages=data,teacher")
    one, two = (
        [m["loss"] for m in read_metrics(path / "metrics.jsonl") if m["stage"] == "teacher"]
        for path in (tmp_path / "one", workdir)
    )
    np.testing.assert_allclose(two[-1], one[-1], rtol=1e-2)


def test_a_run_of_several_processes_takes_its_teacher_from_another_run(
    finished, shortest, tmp_path
):
    """Bit for bit."""
    workdir, _, _ = finished
    teacher = f"--config.teacher.checkpoint={workdir / 'teacher'}"
    together(2, 2, *RUN, *shortest, f"--workdir={tmp_path}", teacher, "--stages=data,teacher")
    taken, given = (load_params(root / "teacher" / "final")[0] for root in (tmp_path, workdir))
    assert params_digest(taken) == params_digest(given)


def test_processes_write_the_texts_that_one_device_writes(finished, tmp_path):
    """Equal but for ties that rounding decides, at most 1 %; three texts do not divide over four devices."""
    workdir, _, _ = finished
    options = ("--num_samples=3", "--num_steps=4", "--stop_at_eos", "--prompt=and ")
    texts = []
    for processes, devices in ((1, 1), (2, 2)):
        output = tmp_path / f"{processes}.jsonl"
        command = ("experiments.sample", f"--checkpoint={workdir}", f"--output={output}")
        _, *others = together(processes, devices, *command, *options)
        assert not any(others), others
        texts.append([json.loads(line)["tokens"] for line in output.read_text().splitlines()])
    one, two = map(np.array, texts)
    assert len(one) == 3
    assert np.mean(one != two) <= 0.01


def test_processes_measure_what_one_device_measures(finished, tmp_path):
    """Generation and likelihood: every figure agrees to 1 %, which leaves room for rounding."""
    workdir, _, _ = finished
    results = []
    for processes, devices in ((1, 1), (2, 2)):
        output = tmp_path / f"{processes}.json"
        together(
            processes,
            devices,
            "experiments.evaluate",
            f"--checkpoint={workdir}",
            "--suite=generation,likelihood",
            "--num_texts=8",
            "--batch_size=8",
            "--num_steps=4",
            "--held_out_texts=8",
            "--num_maskings=1",
            "--estimators=independent",
            f"--output={output}",
        )
        results.append(json.loads(output.read_text())["items"])
    one, two = results
    assert one.keys() == two.keys()
    assert {name.split("/")[0] for name in one} == {"generation", "likelihood"}
    for name, item in one.items():
        figures = {k: v for k, v in item["result"].items() if isinstance(v, float)}
        for figure, value in figures.items():
            assert two[name]["result"][figure] == pytest.approx(value, rel=1e-2), (name, figure)


def test_an_evaluation_stops_after_the_batch_and_keeps_what_is_finished(finished, tmp_path):
    """SIGTERM is sent to both processes, when about a hundred batches are still to come."""
    workdir, _, _ = finished
    parts = tmp_path / "results.json.parts"
    together(
        2,
        2,
        "experiments.evaluate",
        f"--checkpoint={workdir}",
        "--suite=generation",
        "--judge=none",
        "--num_texts=400",
        "--batch_size=4",
        "--num_steps=4",
        f"--output={tmp_path / 'results.json'}",
        stop_when=lambda: any(parts.rglob("*.npz")),
    )
    assert 0 < len(list(parts.rglob("*.npz"))) < 100
    items = json.loads((tmp_path / "results.json").read_text())["items"]
    assert not [name for name in items if "real_text" not in name], items.keys()
