"""The only training loop: teacher, judge and every round of distillation use it."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

import jax

from sdtt_jax.checkpoints.digests import describe
from sdtt_jax.config import require
from sdtt_jax.errors import UserError
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import mesh_of, use_mesh
from sdtt_jax.parallel.placement import place_batch, place_whole
from sdtt_jax.parallel.replicas import check_replicas
from sdtt_jax.progress import say_stopping
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.state import TrainState
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Tree

StepFn = Callable[[TrainState, Tree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
# Steps handed to the devices before the oldest must be done: enough to keep them busy, few enough
# that a signal is obeyed soon and that batches do not pile up.
STEPS_IN_FLIGHT = 2
BATCHES_AHEAD = 2
# The metrics that are kept for every step until the next log point, to report rejected updates.
REJECTION_METRICS = ("rejected", "rejected_in_a_row", "loss", "grad_norm")


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop, and kept its state; entry points exit with `EXIT_INTERRUPTED`.

    Attributes:
      step: the last step taken.
      state: the state after that step if there were no checkpoints to save it to, else None. `train` goes on
        from it.
    """

    def __init__(self, step: int, signal_name: str, state: TrainState | None = None):
        kept = (
            "the state is saved"
            if state is None
            else "its state is this error's `state`, not saved"
        )
        super().__init__(f"Stopped by {signal_name} after step {step}; {kept}.")
        self.step, self.state = step, state


class NonFiniteError(UserError):
    """Too many steps in a row gave a loss or gradient that is not finite."""


class Saver(Protocol):
    """The interface of `sdtt_jax.checkpoints.store.Checkpoints` that the loop needs."""

    def save(self, state: Any) -> bool: ...

    def finish(self, state: Any) -> None: ...


def _ignore(*_: Any) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class TrainLog:
    """Functions that the loop calls to report; each may be left out."""

    # `(step, metrics)` at every `log_every`-th step and at step `num_steps`: loss, grad_norm, lr, seconds,
    # data_wait (seconds that a step waited for its batch, the mean since the last log point) ….
    write: Callable[[int, Mapping[str, float]], None] = _ignore
    # `(step, metrics or None)` at the start and after every step, with metrics at log points and at the end.
    progress: Callable[[int, Mapping[str, float] | None], None] = _ignore
    # `(step, metrics)` of every rejected update, at the next log point or save.
    on_rejected: Callable[[int, Mapping[str, float]], None] = _ignore
    # Called before every save: what was written until then must outlive a kill, as the state does.
    saving: Callable[[], None] = _ignore
    # Called after every step and every save, e.g. the function that `watchdog` yields.
    alive: Callable[[], None] = _ignore
    # Makes `tokens_per_second` one of the metrics; 0 leaves it out. It usually counts all positions of a
    # batch, prompts and padding too, which cost as much as the others.
    tokens_per_batch: int = 0


SILENT = TrainLog()


def train(
    state: TrainState,
    step_fn: StepFn,
    batch_at: Callable[[int], Tree],
    key: jax.Array,
    config: TrainConfig,
    *,
    checkpoints: Saver | None = None,
    log: TrainLog = SILENT,
) -> TrainState:
    """Trains from `state.step` to `config.num_steps`.

    The loop waits for the devices only at log points and to bound the steps in flight; a thread makes
    the next batches meanwhile. Since batch and keys depend on the step alone, stopping and continuing from
    a checkpoint gives the same bits as not stopping.

    Args:
      state: placed on a mesh; donated, do not use it afterwards.
      step_fn: from `make_train_step`.
      batch_at: step to global batch, a tree of host arrays `[batch, ...]`; a pure function, since
        it is called from a thread, ahead of time.
      key: key of the stage and round.
      config: when to stop, to log, to save, to compare replicas and to give up.
      checkpoints: saved to every `save_every` steps, at the end, and when interrupted. While updates are
        being rejected, a save that is due waits for the first good one.
      log: functions to report to.

    Returns:
      The state after `num_steps`.

    Raises:
      Interrupted: after SIGINT or SIGTERM, once the current step is done and saved, or, without
        `checkpoints`, with the state in the error. A second signal ends the process at once.
      ConfigError: an array of the state is empty, which checkpoints cannot hold.
      NonFiniteError: `max_rejected` updates in a row were rejected; unless a signal stopped the training
        among them, the last checkpoint is from before the first.
      CheckpointError: the context is not finite, and cannot be saved; or the last state could not be saved.
      ReplicaError: devices hold unequal copies; nothing is saved after the last checkpoint.
    """
    if checkpoints is not None:
        _check_savable(state)
    mesh = mesh_of(state.step)
    # An accidental transfer to or from the devices would stall them, so within a step only explicit ones are
    # let through. Without `jit` every constant is a transfer.
    transfers = "allow" if getattr(jax.config, "jax_disable_jit", False) else "disallow"
    start = int(jax.device_get(state.step))
    in_flight: collections.deque[jax.Array] = collections.deque()
    meter = _Meter(start, config.max_rejected, log)
    due = False  # a save
    with _stop_signals() as stop, _Prefetched(batch_at, mesh, start, config.num_steps) as batches:
        with use_mesh(mesh):
            key = place_whole(key, mesh)
        log.progress(start, None)
        for step, batch in enumerate(batches, start=start + 1):
            with jax.transfer_guard(transfers):
                state, metrics = step_fn(state, batch, key)
            in_flight.append(metrics["loss"])
            meter.add(metrics)
            if len(in_flight) > STEPS_IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            log.alive()
            stopping = stop.requested()
            last = stopping or step == config.num_steps
            logged = step == config.num_steps or step % config.log_every == 0
            due |= checkpoints is not None and step % config.save_every == 0
            # A save between rejected updates would push out the last checkpoint from before them.
            in_a_row = meter.report(step) if last or logged or due else 0
            values = None
            if last or logged:
                values = meter.read(step, metrics, batches.waited)
                # Only at regular steps, so that the metrics do not depend on where a run was stopped.
                if logged:
                    log.write(step, values)
            log.progress(step, values)
            saving = checkpoints is not None and (last or (due and not in_a_row))
            every = config.check_replicas_every
            if every and (saving or step % every == 0):
                check_replicas(state, step)
            if checkpoints is not None and saving:
                due = False
                log.saving()
                checkpoints.save(state)
                log.alive()
            if stopping:
                if checkpoints is not None:
                    checkpoints.finish(state)
                raise Interrupted(step, stop.name, state if checkpoints is None else None)
        if checkpoints is not None:
            checkpoints.finish(state)
        # A signal may have come while the last step was saved, which takes a while.
        if stop.requested():
            kept = state if checkpoints is None else None
            raise Interrupted(max(start, config.num_steps), stop.name, kept)
    return state


def _check_savable(state: TrainState) -> None:
    """Raises `ConfigError` for an array without elements, `CheckpointError` for a context not finite."""
    leaves = flat_leaves(state)
    for path, leaf in leaves.items():
        require(
            leaf.size > 0,
            f"{path} has no elements, and cannot be saved; leave it out of the state.",
        )
    if context := {path: leaf for path, leaf in leaves.items() if path.startswith("context/")}:
        describe(context)  # of the rest, what is not finite is not accepted


class _Meter:
    """Collects what is measured from one log point to the next."""

    def __init__(self, start: int, max_rejected: int, log: TrainLog):
        self._max_rejected, self._log = max_rejected, log
        self._began = self._clock = time.monotonic()
        self._step, self._waited = start, 0.0
        # Of the steps since the last report.
        self._unreported: list[dict[str, jax.Array]] = []

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Records a step, whose metrics the devices may still be computing."""
        self._unreported.append({k: metrics[k] for k in REJECTION_METRICS if k in metrics})

    def report(self, step: int) -> int:
        """Reports the updates rejected since the last report; raises if too many came in a row.

        Args:
          step: the step just taken, for which the devices are waited.

        Returns:
          How many updates in a row were rejected, up to this step; 0 if this one was not.
        """
        in_a_row = 0
        steps = jax.device_get(self._unreported)
        for at, values in enumerate(steps, start=step - len(steps) + 1):
            in_a_row = int(values.get("rejected_in_a_row", 0))
            if not values.get("rejected"):
                continue
            self._log.on_rejected(at, {name: float(value) for name, value in values.items()})
            if in_a_row >= self._max_rejected:
                raise NonFiniteError(
                    f"The loss or its gradient was not finite (or the loss spiked) in {in_a_row} steps in a "
                    f"row, up to step {at}. A restart from a checkpoint repeats the same steps: begin in "
                    "another --workdir with a lower learning_rate or without the bad values in data or "
                    "teacher; or, if the steps after these are good, raise max_rejected."
                )
        self._unreported = []
        return in_a_row

    def read(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> dict[str, float]:
        """Returns the metrics to write.

        Args:
          step: the step just taken.
          metrics: the metrics of that step.
          waited: seconds that the loop has waited for batches since the start.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now, steps = time.monotonic(), step - self._step
        values["seconds"] = now - self._began
        values["data_wait"] = (waited - self._waited) / steps
        if self._log.tokens_per_batch:
            tokens = steps * self._log.tokens_per_batch
            values["tokens_per_second"] = tokens / (now - self._clock)
        self._step, self._clock, self._waited = step, now, waited
        return values


class _Prefetched:
    """Batches of steps start … num_steps - 1, placed on the mesh, made ahead by one thread.

    Attributes:
      waited: seconds that the loop has waited for them.
    """

    def __init__(self, batch_at: Callable[[int], Tree], mesh: Any, start: int, num_steps: int):
        self._make = lambda step: place_batch(batch_at(step), mesh)
        self._steps = range(start, num_steps)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.waited = 0.0

    def __enter__(self) -> "_Prefetched":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Tree]:
        ahead = collections.deque(
            self._pool.submit(self._make, step) for step in self._steps[:BATCHES_AHEAD]
        )
        for step in self._steps:
            began = time.monotonic()
            batch = ahead.popleft().result()
            self.waited += time.monotonic() - began
            if step + BATCHES_AHEAD in self._steps:
                ahead.append(self._pool.submit(self._make, step + BATCHES_AHEAD))
            yield batch


class _Stop:
    """Whether a signal asked to stop; with several processes, whether all have agreed to."""

    def __init__(self) -> None:
        self.name, self.heard = "", False

    def requested(self) -> bool:
        if jax.process_count() > 1 and processes.preempted():
            self.name = "SIGTERM"
        self.heard = bool(self.name)
        return self.heard


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()
    several = jax.process_count() > 1
    # With several processes JAX's notifier handles SIGTERM, and makes all of them agree on a step.
    handled = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
    # Python lets only the main thread set handlers; a loop in another thread must be stopped by its
    # starter.
    if threading.current_thread() is not threading.main_thread():
        handled = []

    def handle(number: int, _frame: Any) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)
        if several:
            signal.raise_signal(signal.SIGTERM)
        else:
            stop.name = signal.Signals(number).name

    # `getsignal` gives None for a handler that was not installed from Python; it cannot be put back.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in handled}
    for number in handled:
        signal.signal(number, handle)
    try:
        with _answered(handled):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.name and not stop.heard:  # the signal came after the loop last asked
        signal.raise_signal(signal.Signals[stop.name])


@contextlib.contextmanager
def _answered(handled: Collection[int]) -> Iterator[None]:
    """Says at once, in a thread, that a signal was heard: Python's handlers wait until a compilation ends."""
    if not handled:
        yield
        return
    ours, theirs = os.pipe()

    def listen() -> None:
        number = -1
        while number and number not in handled:
            [number] = os.read(ours, 1)
        if number:
            say_stopping()

    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(theirs, b"\0")  # a child process may keep the pipe open
        thread.join()
        os.close(theirs)
        os.close(ours)
