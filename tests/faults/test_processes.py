"""Lost, missing and hung processes. Oracle of what is left behind: the run that was never interrupted."""

import json
import re
import shutil
import signal

import numpy as np
import pytest

from sdtt_jax.checkpoints.store import Checkpoints
from tests.faults.launching import alone, several
from tests.sharing import once
from tests.training import tiny

pytestmark = [pytest.mark.slow, pytest.mark.multidevice]

# Megabytes: enough for writing a checkpoint to take a good part of a second.
BALLAST = 24


def digest_of(victim):
    assert victim.end() == 0, victim.output
    return victim.found(r"^digest (\w+)")


def being_written(directory):
    return any((directory / "steps").glob("*.orbax-checkpoint-tmp"))


def whole_steps(directory):
    return sorted(int(p.name) for p in (directory / "steps").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder, and digests of the parameters, by one and by two processes."""

    def make(folder):
        one = digest_of(alone(folder / "one"))
        two = [digest_of(victim) for victim in several(folder / "two")]
        assert two[0] == two[1]
        return {"one": one, "two": two[0]}

    folder, digests = once(tmp_path_factory, "unbroken_victims", make)
    return {"folder": folder} | digests


@pytest.mark.fault(
    row=1,
    fault="kill -9 while a checkpoint is being written",
    promise="the one before it is the latest; resumed, the end is the unbroken run's, bit for bit",
)
def test_row_01_killed_while_writing(unbroken, tmp_path):
    victim = alone(tmp_path, "--save_every=2", "--sleep=0.2", f"--ballast={BALLAST}")
    victim.wait_for(lambda: (tmp_path / "steps" / "2").exists() and being_written(tmp_path))
    victim.process.send_signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    with Checkpoints(tmp_path / "steps") as checkpoints:
        restored = checkpoints.restore(tiny.abstract(BALLAST))
        assert restored is not None
        assert checkpoints.steps[-1] == int(restored[0].step)
    again = alone(tmp_path, "--save_every=100", f"--ballast={BALLAST}")
    assert digest_of(again) == unbroken["one"]
    first = int(again.found(r"^step (\d+)"))
    assert first == int(restored[0].step)
    assert first >= 2


@pytest.mark.fault(
    row=12,
    fault="kill -9 of the coordinating process",
    promise="the others end with an error in seconds; the same command goes on",
)
def test_row_12_the_coordinator_is_killed(unbroken, tmp_path):
    first, second = several(tmp_path, "--sleep=0.3", "--heartbeat=10")
    first.wait_for_line("step 7")
    first.process.send_signal(signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    assert second.end(within=60) not in (0, 75), second.output
    digests = [digest_of(victim) for victim in several(tmp_path)]
    assert digests == [unbroken["two"]] * 2


@pytest.mark.fault(
    row=12,
    fault="one of several processes fails (its disk is full, it cannot read its data)",
    promise="the others end in seconds, with a sentence and the same status (JAX: after 5 minutes)",
)
def test_row_12_one_of_several_fails(tmp_path):
    first, second = several(tmp_path, "--fail_at=6")
    assert second.end() == 2
    assert first.end(within=30) == 2, first.output
    assert "Process 1 has failed, and its output says why" in first.output


@pytest.mark.fault(
    row=12,
    fault="kill -9 of another process",
    promise="the others end with an error after the heartbeat's silence (100 s unless set)",
)
@pytest.mark.fault(
    row=13,
    fault="kill -9 of one of several processes while a checkpoint is being written",
    promise="no partial step looks finished; the survivors end; resumed, bit for bit the unbroken run",
)
def test_row_13_a_worker_is_killed_while_all_write(unbroken, tmp_path):
    ballast = f"--ballast={BALLAST}"
    first, second = several(tmp_path, ballast, "--save_every=2", "--sleep=0.2", "--heartbeat=10")
    second.wait_for(lambda: (tmp_path / "steps" / "2").exists() and being_written(tmp_path))
    second.process.send_signal(signal.SIGKILL)
    assert second.end() == -signal.SIGKILL
    assert first.end(within=60) not in (0, 75), first.output
    assert set(whole_steps(tmp_path)) <= set(range(2, tiny.NUM_STEPS, 2))
    digests = [digest_of(victim) for victim in several(tmp_path, ballast, "--save_every=100")]
    assert digests == [unbroken["two"]] * 2


@pytest.mark.fault(
    row=14,
    fault="one process of a job never starts",
    promise="the others stop after the timeout with a message that says so",
)
def test_row_14_a_process_that_never_starts(tmp_path):
    [victim] = several(tmp_path, "--join_timeout=3", start=1)
    assert victim.end(within=60) not in (0, 75)
    assert "Not all processes of this job appeared within 3 s" in victim.output


@pytest.mark.fault(
    row=15,
    fault="a process hangs (a deadlocked data thread)",
    promise="all end with an error within 1.5 watchdog_seconds, each with its stacks on stderr",
)
def test_row_15_a_hung_step(tmp_path):
    victims = several(tmp_path, "--hang_at=6", "--watchdog=8")
    statuses = [victim.end(within=90) for victim in victims]
    assert all(status not in (0, 75) for status in statuses), statuses
    for victim in victims:
        assert "a training step (stage tiny, round 1) has not finished within 8 s" in victim.output
        assert "Thread 0x" in victim.output
        assert "loop.py" in victim.output
    assert re.search(r"victim\.py\", line \d+ in batch_at", victims[1].output)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Two processes, of which one got SIGTERM: statuses and steps."""

    def make(folder):
        victims = several(folder / "run", "--sleep=0.3", "--save_every=100")
        victims[1].wait_for_line("step 6")
        victims[1].process.send_signal(signal.SIGTERM)
        statuses = [victim.end() for victim in victims]
        return [statuses, [victim.found(r"^stopped (\d+)") for victim in victims]]

    folder, (statuses, steps) = once(tmp_path_factory, "stopped_victims", make)
    return folder / "run", statuses, steps


def copied(directory, target):
    return shutil.copytree(directory, target)


@pytest.mark.fault(
    row=9,
    fault="SIGTERM to one of several processes",
    promise="all save the same step and exit with 75; resumed, bit for bit the unbroken run",
)
def test_row_09_sigterm_to_one_of_several(unbroken, stopped, tmp_path):
    directory, statuses, steps = stopped
    assert statuses == [75, 75]
    assert steps[0] == steps[1]
    assert whole_steps(directory) == [int(steps[0])]
    again = several(copied(directory, tmp_path / "run"))
    assert [digest_of(victim) for victim in again] == [unbroken["two"]] * 2


@pytest.mark.fault(
    row=22,
    fault="resumed by another number of processes",
    promise="the same batches go on from the same step; values to rounding",
)
def test_row_22_another_number_of_processes(unbroken, stopped, tmp_path):
    """Oracle: the metrics of one process that was never interrupted."""
    directory, _, steps = stopped
    again = alone(copied(directory, tmp_path / "run"))
    assert again.end() == 0, again.output
    made = [int(line.split()[1]) for line in again.output.splitlines() if line.startswith("step ")]
    assert made == list(range(int(steps[0]), tiny.NUM_STEPS))

    def losses(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return {record["step"]: record["loss"] for record in map(json.loads, lines)}

    found, expected = losses(tmp_path / "run"), losses(unbroken["folder"] / "one")
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        np.testing.assert_allclose(found[step], loss, rtol=1e-5, err_msg=step)
