"""The loop: what it writes and when. For exact resume, signals and faults see tests/faults."""

import hashlib
import os
import pty
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.distillation.rounds import DistillConfig, next_round
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.ops import digest
from sdtt_jax.progress import make_progress
from sdtt_jax.training import loop
from sdtt_jax.training.metrics import read_metrics
from tests.training import tiny, toy


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """`(directory, final state)`."""
    directory = tmp_path_factory.mktemp("unbroken")
    return directory, tiny.run(directory)


def test_metrics_after_a_resume_are_those_of_the_unbroken_run(unbroken, tmp_path):
    """The first run logs up to step 6 and dies; its last checkpoint is at 4."""

    def dying(step):
        if step == 6:
            raise OSError("the disk is gone")
        return tiny.batch_at(step)

    with pytest.raises(OSError, match="the disk is gone"):
        tiny.run(tmp_path, dying)
    tiny.run(tmp_path)

    def comparable(directory):
        timed = ("seconds", "tokens_per_second", "data_wait")
        records = read_metrics(directory / "metrics.jsonl")
        return [{k: v for k, v in r.items() if k not in timed} for r in records]

    assert comparable(tmp_path) == comparable(unbroken[0])
    assert [r["step"] for r in comparable(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize(("rejected", "expected"), [(None, [4, 8, 10]), (4, [5, 8, 10])])
def test_saves_happen_every_few_steps_or_once_a_step_is_accepted_and_at_the_end(rejected, expected):
    """Before each, the metrics until then are kept."""
    saved, written, kept = [], [], []

    def batch_at(index):
        return tiny.batch_at(index) * (np.nan if index + 1 == rejected else 1)

    class Recorder:
        def save(self, state):
            saved.append(int(state.step))
            assert kept[-1] == written[-1] == saved[-1]
            return True

        def finish(self, state):
            assert int(state.step) == 10

    config = toy.until(tiny.config(), 10, save_every=4, log_every=1)
    key = jax.random.key(tiny.KEY)
    log = loop.TrainLog(
        write=lambda step, _values: written.append(step),
        saving=lambda: kept.append(written[-1]),
    )
    recorder = Recorder()
    loop.train(tiny.fresh(), tiny.step_fn(), batch_at, key, config, checkpoints=recorder, log=log)
    assert saved == expected


def test_an_empty_array_is_named_before_the_first_step(tmp_path):
    """Orbax saves none: the training ended, and was lost, at its third save."""
    state, never = tiny.fresh(), lambda step: pytest.fail(f"step {step}")
    state = state.replace(context=state.context | {"none": state.params["bias"][:0]})
    with Checkpoints(tmp_path) as kept, pytest.raises(ConfigError, match="context/none has no el"):
        loop.train(state, never, never, jax.random.key(0), tiny.config(), checkpoints=kept)


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_a_context_that_cannot_be_saved_is_named_before_the_first_step(tmp_path, value):
    """The training ended, and was lost, at its first save. Oracle: that save's own error."""
    state, never = tiny.fresh(), lambda step: pytest.fail(f"step {step}")
    state = state.replace(context=state.context | {"scale": state.params["bias"] + value})
    said = "context/scale holds values that are not finite"
    with Checkpoints(tmp_path) as kept:
        with pytest.raises(CheckpointError, match=said):
            kept.save(state)
        with pytest.raises(CheckpointError, match=said):
            loop.train(state, never, never, jax.random.key(0), tiny.config(), checkpoints=kept)


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

    def progress(step, values):
        del values
        # While step n runs, at most BATCHES_AHEAD more than n batches exist.
        assert len(made) <= step + loop.BATCHES_AHEAD + 1

    config, log = toy.until(tiny.config(), 8, log_every=1), loop.TrainLog(progress=progress)
    loop.train(tiny.fresh(), tiny.step_fn(), batch_at, jax.random.key(0), config, log=log)
    assert made == list(range(8))
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_the_wait_for_a_batch_is_told():
    """Batches that take 50 ms each, and steps that take nearly nothing."""
    waits = []

    def slow(step):
        time.sleep(0.05)
        return tiny.batch_at(step)

    log = loop.TrainLog(write=lambda _step, values: waits.append(values["data_wait"]))
    loop.train(tiny.fresh(), tiny.step_fn(), slow, jax.random.key(0), tiny.config(), log=log)
    # The thread makes two batches ahead while the loop does other things.
    assert all(0 <= wait < 5 for wait in waits)
    assert waits[-1] > 0.02


def test_logs_come_every_few_steps_and_at_the_end_and_tell_of_the_steps_since_the_last():
    """Oracle: 7 tokens a step, whatever it takes; waits that add up to less than all of the time."""
    seen = {}

    def slow(step):
        time.sleep(0.03)
        return tiny.batch_at(step)

    log = loop.TrainLog(write=lambda step, values: seen.update({step: values}), tokens_per_batch=7)
    config = toy.until(tiny.config(), 10, log_every=4)
    loop.train(tiny.fresh(), tiny.step_fn(), slow, jax.random.key(0), config, log=log)
    assert list(seen) == [4, 8, 10]
    before, began, waited = 0, 0.0, 0.0
    for step, values in seen.items():
        tokens = values["tokens_per_second"] * (values["seconds"] - began)
        assert tokens == pytest.approx(7 * (step - before))
        waited += values["data_wait"] * (step - before)
        before, began = step, values["seconds"]
    assert 0.03 < waited < began


def test_a_step_may_run_without_jit():
    """Then every Python constant is a transfer, which compiled steps must not make."""

    def step_fn(state, batch, key):
        del batch, key
        zero = jax.numpy.zeros(())
        return state.replace(step=state.step + 1), {"loss": zero, "grad_norm": zero}

    config, key = toy.until(tiny.config(), 2), jax.random.key(0)
    with jax.disable_jit():
        state = loop.train(tiny.fresh(), step_fn, tiny.batch_at, key, config)
    assert int(state.step) == 2


def test_a_caller_may_forbid_accidental_transfers():
    """Oracle: `jax.transfer_guard` lets those on purpose through. The guard is for all threads."""
    state, step_fn, key = tiny.fresh(), tiny.step_fn(), jax.random.key(tiny.KEY)
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        state = loop.train(state, step_fn, tiny.batch_at, key, toy.until(tiny.config(), 3))
        student = next_round(DistillConfig(), state, 2)
    finally:
        jax.config.update("jax_transfer_guard", None)
    assert int(state.step) == 3
    assert student.context["dt"] == 1 / 512


def test_a_caller_may_have_set_another_mesh(unbroken, tmp_path, monkeypatch):
    """Oracle: the training without. A state that is large, or not on CPUs, is digested by a program."""
    monkeypatch.setattr(digest, "ON_HOST", 0)
    state, abstract, key = tiny.fresh(), tiny.abstract(), jax.random.key(tiny.KEY)
    with jax.set_mesh(jax.make_mesh((1,), ("x",))), Checkpoints(tmp_path) as checkpoints:
        fields = {"config": tiny.config(), "checkpoints": checkpoints}
        loop.train(state, tiny.step_fn(), tiny.batch_at, key, **fields)
        restored, _ = checkpoints.restore(abstract)
    toy.assert_same(restored, unbroken[1])


def test_a_first_ctrl_c_is_answered_at_once_and_shows_the_cursor(monkeypatch):
    """A second one kills the process, and left no cursor. Oracle: what a terminal gets in a call of C."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    seen, at, key = bytearray(), {}, jax.random.key(tiny.KEY)

    def press():
        time.sleep(0.1)  # until the call has begun
        at["pressed"] = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
        while b"Stopping" not in seen and time.monotonic() < at["pressed"] + 20:
            seen.extend(os.read(ours, 4096))  # the bar writes ten times a second
        at["answered"] = time.monotonic()

    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with make_progress("tiny", tiny.NUM_STEPS) as bar:

            def progress(step, values):
                bar.update(step, values)
                if step == 2:
                    user = threading.Thread(target=press)
                    user.start()
                    hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)  # a second
                    at["over"] = time.monotonic()
                    user.join()

            log, config = loop.TrainLog(progress=progress), tiny.config()
            with pytest.raises(loop.Interrupted):
                loop.train(tiny.fresh(), tiny.step_fn(), tiny.batch_at, key, config, log=log)
    os.close(ours)
    assert at["answered"] - at["pressed"] < (at["over"] - at["pressed"]) / 2
    assert b"\x1b[?25hStopping once the step" in seen.partition(b"\x1b[?25l")[2]
    assert not [t for t in threading.enumerate() if t.name == "signals"]
