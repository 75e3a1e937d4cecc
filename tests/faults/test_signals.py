"""SIGTERM and SIGINT at every moment of one process. Oracle: the unbroken run, bit for bit."""

import os
import signal

import jax
import pytest

from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.training import loop
from sdtt_jax.training.metrics import read_metrics
from sdtt_jax.training.step import make_train_step
from tests.experiments.processes import SMOKE, start
from tests.faults.launching import alone
from tests.training import tiny, toy


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("unbroken"))


def restored(directory):
    with Checkpoints(directory / "steps") as checkpoints:
        return checkpoints.restore(tiny.abstract())[0]


def send(number):
    os.kill(os.getpid(), number)


def while_compiling(number):
    """The signal is sent while the step is traced, just before it is compiled."""

    def loss_fn(*arguments):
        if not isinstance(arguments[2], jax.ShapeDtypeStruct):
            send(number)
        return tiny.loss_fn(*arguments)

    return {"step_fn": make_train_step(loss_fn, tiny.config())}


def before_the_first_step(number):
    return {"batches": lambda step: (step or send(number), tiny.batch_at(step))[1]}


def between_steps(number):
    return {"batches": lambda step: (step != 6 or send(number), tiny.batch_at(step))[1]}


def while_saving(number):
    class Sending(Checkpoints):
        def save(self, state):
            started = super().save(state)
            if int(state.step) == 5:
                send(number)
            return started

    return {"store": Sending}


def while_saving_the_end(number):
    class Sending(Checkpoints):
        def save(self, state):
            started = super().save(state)
            if int(state.step) == tiny.NUM_STEPS:
                send(number)
            return started

    return {"store": Sending}


MOMENTS = {
    "compiling": while_compiling,
    "before the first step": before_the_first_step,
    "between steps": between_steps,
    "saving": while_saving,
    "saving the last step": while_saving_the_end,
}


def stopped(directory, number, moment, monkeypatch):
    """The step at which a run stops if it gets a signal at this moment."""
    fields = MOMENTS[moment](number)
    if "step_fn" in fields:
        monkeypatch.setattr(tiny, "step_fn", lambda: fields["step_fn"])
    if "store" in fields:
        monkeypatch.setattr(tiny, "Checkpoints", fields["store"])
    before = signal.getsignal(number)
    with pytest.raises(loop.Interrupted, match=signal.Signals(number).name) as caught:
        tiny.run(directory, fields.get("batches", tiny.batch_at), save_every=5)
    monkeypatch.undo()
    assert signal.getsignal(number) == before
    return caught.value.step


@pytest.mark.fault(
    row=10,
    fault="SIGTERM while compiling, before the first step, between steps, while saving, after the last step",
    promise="the step under way ends and is saved, exit 75; resumed, bit for bit the unbroken run",
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_row_10_sigterm_at_any_moment(unbroken, tmp_path, monkeypatch, moment):
    step = stopped(tmp_path, signal.SIGTERM, moment, monkeypatch)
    assert int(restored(tmp_path).step) == step
    most = {"compiling": 1, "before the first step": 1, "saving the last step": tiny.NUM_STEPS}
    assert step <= most.get(moment, 8)
    toy.assert_same(tiny.run(tmp_path), unbroken)


@pytest.mark.fault(
    row=11,
    fault="SIGINT (Ctrl-C)",
    promise="the same as SIGTERM",
)
@pytest.mark.parametrize("moment", ["between steps", "saving"])
def test_row_11_sigint(unbroken, tmp_path, monkeypatch, moment):
    step = stopped(tmp_path, signal.SIGINT, moment, monkeypatch)
    assert int(restored(tmp_path).step) == step
    toy.assert_same(tiny.run(tmp_path), unbroken)


@pytest.mark.parametrize("last", [6, tiny.NUM_STEPS])
def test_a_training_without_checkpoints_that_is_stopped_gives_its_state(unbroken, last):
    """It said that the state was saved, which was lost: the one that was passed in had been donated."""
    config, key = toy.until(tiny.config(), tiny.NUM_STEPS), jax.random.key(tiny.KEY)

    def progress(step, _values):
        if step == last:
            send(signal.SIGINT)

    log = loop.TrainLog(progress=progress)
    with pytest.raises(loop.Interrupted, match="error's `state`, not saved") as caught:
        loop.train(tiny.fresh(), tiny.step_fn(), tiny.batch_at, key, config, log=log)
    state = caught.value.state
    assert int(state.step) == caught.value.step == min(last + 1, tiny.NUM_STEPS)
    ended = loop.train(state, tiny.step_fn(), tiny.batch_at, key, config)
    toy.assert_same(ended, unbroken)


def test_a_stopped_training_logs_the_steps_of_one_that_was_not(tmp_path):
    """The step at which a training was stopped used to get a log line of its own, for good."""
    batches = between_steps(signal.SIGTERM)["batches"]
    with pytest.raises(loop.Interrupted):
        tiny.run(tmp_path, batches, log_every=5)
    tiny.run(tmp_path, log_every=5)
    logged = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert logged == [5, 10, tiny.NUM_STEPS]


@pytest.mark.slow
@pytest.mark.fault(
    row=10,
    fault="SIGTERM to a process that trains",
    promise="exit status 75, the state saved",
)
def test_row_10_exit_status(tmp_path):
    victim = alone(tmp_path, "--sleep=0.3", "--save_every=100", devices=1)
    victim.wait_for_line("step 5")
    victim.process.send_signal(signal.SIGTERM)
    assert victim.end(within=30) == 75
    assert int(victim.found(r"^stopped (\d+)")) == int(restored(tmp_path).step)


@pytest.mark.slow
@pytest.mark.fault(
    row=10,
    fault="a second signal while the first is being obeyed",
    promise="ends at once; the last checkpoint is whole and goes on",
)
def test_row_10_a_second_signal(unbroken, tmp_path):
    victim = alone(tmp_path, "--sleep=0.7", "--save_every=3", devices=1)
    victim.wait_for_line("step 6")
    victim.process.send_signal(signal.SIGTERM)
    # The first signal's handler restores the default, which Linux shows; the step under way takes longer.
    victim.wait_for(lambda: not is_caught(signal.SIGTERM, victim.process.pid))
    victim.process.send_signal(signal.SIGTERM)
    assert victim.end(within=30) == -signal.SIGTERM
    assert int(restored(tmp_path).step) == 3
    toy.assert_same(tiny.run(tmp_path), unbroken)


def is_caught(number, pid):
    """Whether a process has a handler for a signal, as Linux tells."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        fields = dict(line.split(":", 1) for line in status)
    return bool(int(fields["SigCgt"], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.fault(
    row=10,
    fault="SIGTERM outside of any training (preparing data)",
    promise="exit status 75; nothing half-made looks finished; the same command goes on",
)
def test_row_10_outside_of_training(tmp_path):
    process = start("run", SMOKE, f"--workdir={tmp_path}", "--stages=data")
    assert process.stdout.readline().startswith("data:")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "Run the same command to go on" in stderr
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / ".data.partial").exists()
