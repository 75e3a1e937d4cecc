"""The loop: exact resume, what it writes, when it stops. Oracle of every resume: the unbroken run."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from sdtt_jax.training import loop
from sdtt_jax.training.checkpoint import Checkpoints
from sdtt_jax.training.metrics import read_metrics
from sdtt_jax.training.state import abstract_state
from tests.training import tiny, toy


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """`(directory, final state)`."""
    directory = tmp_path_factory.mktemp("unbroken")
    return directory, tiny.run(directory)


def restored(directory):
    with Checkpoints(directory / "steps") as checkpoints:
        return checkpoints.restore(tiny.make(abstract_state))[0]


@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
def test_stopping_and_resuming_gives_the_same_bits_as_not_stopping(unbroken, tmp_path, stop_at):
    tiny.run(tmp_path, num_steps=stop_at)
    toy.assert_same(tiny.run(tmp_path), unbroken[1])


def test_metrics_after_a_resume_are_those_of_the_unbroken_run(unbroken, tmp_path):
    """The first run logs up to step 6 and dies with its last checkpoint at 4."""

    def dying(step):
        if step == 6:
            raise OSError("the disk is gone")
        return tiny.batch_at(step)

    with pytest.raises(OSError, match="the disk is gone"):
        tiny.run(tmp_path, dying)
    tiny.run(tmp_path)

    def comparable(directory):
        timed = ("seconds", "tokens_per_second")
        records = read_metrics(directory / "metrics.jsonl")
        return [{k: v for k, v in r.items() if k not in timed} for r in records]

    assert comparable(tmp_path) == comparable(unbroken[0])
    assert [r["step"] for r in comparable(tmp_path)] == list(range(1, 13))


def test_saves_happen_every_few_steps_and_at_the_end():
    saved = []

    class Recorder:
        def save(self, state):
            saved.append(int(state.step))
            return True

        def wait(self):
            pass

    state = tiny.make()
    key = jax.random.key(tiny.KEY)
    loop.train(state, tiny.step_fn(), tiny.batch_at, 10, key, checkpoints=Recorder(), save_every=4)
    assert saved == [4, 8, 10]


def test_a_finished_run_has_nothing_to_do(tmp_path, unbroken):
    def never(step):
        raise AssertionError(step)

    tiny.run(tmp_path)
    toy.assert_same(tiny.run(tmp_path, never), unbroken[1])


def test_batches_are_made_ahead_but_not_far_ahead():
    made = []

    def batch_at(step):
        made.append(step)
        return tiny.batch_at(step)

    class Watcher:
        def update(self, step, values=None):
            del values
            # While step n runs, at most BATCHES_AHEAD more than n batches exist.
            assert len(made) <= step + loop.BATCHES_AHEAD + 1

    loop.train(
        tiny.make(), tiny.step_fn(), batch_at, 8, jax.random.key(0), progress=Watcher(), log_every=1
    )
    assert made == list(range(8))
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_persistent_nan_stops_the_run_with_a_finite_last_checkpoint(tmp_path):
    def poisoned(step):
        return np.full_like(tiny.batch_at(step), np.nan) if step >= 5 else tiny.batch_at(step)

    with pytest.raises(loop.NonFiniteError, match="3 steps in a row, up to step 8"):
        tiny.run(tmp_path, poisoned, max_rejected=3)
    state = restored(tmp_path)
    assert int(state.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in toy.host(state).values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_resumes_exactly(unbroken, tmp_path, number):
    before = signal.getsignal(number)

    def batch_at(step):
        if step == 6:
            os.kill(os.getpid(), number)
        return tiny.batch_at(step)

    with pytest.raises(loop.Interrupted, match=signal.Signals(number).name) as caught:
        tiny.run(tmp_path, batch_at, save_every=100)
    assert int(restored(tmp_path).step) == caught.value.step
    assert signal.getsignal(number) == before
    toy.assert_same(tiny.run(tmp_path), unbroken[1])


def start(directory, *arguments):
    command = [sys.executable, "-m", "tests.training.tiny", str(directory), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = directory / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and len(read_metrics(metrics)) >= 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_a_terminated_process_exits_with_75_and_resumes_exactly(unbroken, tmp_path):
    process = start(tmp_path, "--sleep=0.3", "--save_every=100")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75
    assert 3 <= int(restored(tmp_path).step) < tiny.NUM_STEPS
    toy.assert_same(tiny.run(tmp_path), unbroken[1])


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    process = start(tmp_path, "--sleep=0.5")
    with (tmp_path / "metrics.jsonl").open() as metrics:
        metrics.read()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.slow
def test_a_killed_process_resumes_exactly(unbroken, tmp_path):
    process = start(tmp_path, "--sleep=0.1", "--save_every=1")
    process.kill()
    process.communicate(timeout=120)
    toy.assert_same(tiny.run(tmp_path), unbroken[1])
