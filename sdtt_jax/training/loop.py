"""The training loop, the only one: teacher, judge and every round of distillation use it."""

import collections
import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from sdtt_jax.errors import UserError
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import mesh_of
from sdtt_jax.parallel.placement import place_batch, place_whole
from sdtt_jax.parallel.replicas import check_replicas
from sdtt_jax.progress import Progress
from sdtt_jax.training.state import TrainState
from sdtt_jax.training.watchdog import watchdog

Tree = Any
# Steps handed to the devices before the oldest must be done: enough to keep them busy, few enough
# that a signal is obeyed soon and that batches do not pile up.
STEPS_IN_FLIGHT = 2
BATCHES_AHEAD = 2
# Kept of every step until the next log point, to say which updates were rejected and why.
OF_REJECTIONS = ("rejected", "rejected_in_a_row", "loss", "grad_norm")
# What an entry point exits with after `Interrupted`: 75, "try again" in sysexits.h.
EXIT_INTERRUPTED = os.EX_TEMPFAIL


class Interrupted(Exception):  # noqa: N818 - it is a state of affairs, not an error
    """Training was asked to stop and saved first; entry points exit with `EXIT_INTERRUPTED`."""

    def __init__(self, step: int, signal_name: str):
        super().__init__(f"Stopped by {signal_name} after step {step}; the state is saved.")
        self.step = step


class NonFiniteError(UserError):
    """Too many steps in a row gave a loss or gradient that is not finite."""


class Saver(Protocol):
    """What the loop needs of `sdtt_jax.checkpoints.store.Checkpoints`."""

    def save(self, state: Any) -> bool: ...

    def wait(self) -> None: ...


class Writer(Protocol):
    """What the loop needs of `sdtt_jax.training.metrics.MetricsWriter`."""

    def begin(self, tags: Mapping[str, Any], start_step: int = 0) -> None: ...

    def write(self, step: int, values: Mapping[str, float]) -> None: ...


def train(
    state: TrainState,
    step_fn: Callable[[TrainState, Tree, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
    batch_at: Callable[[int], Tree],
    num_steps: int,
    base_key: jax.Array,
    *,
    checkpoints: Saver | None = None,
    writer: Writer | None = None,
    progress: Progress | None = None,
    log_every: int = 10,
    save_every: int = 1000,
    tokens_per_batch: int = 0,
    tags: Mapping[str, Any] | None = None,
    max_rejected: int = 10,
    on_rejected: Callable[[int, Mapping[str, float]], None] | None = None,
    check_replicas_every: int = 0,
    watchdog_seconds: float = 0,
) -> TrainState:
    """Trains from `state.step` to `num_steps`.

    The devices are never waited for but at log points and to bound the steps in flight; the next
    batches are made by a thread meanwhile. Since batch and keys depend on the step alone, stopping
    and going on from a checkpoint gives the same bits as not stopping.

    Args:
      state: placed on a mesh; donated, do not use it afterwards.
      step_fn: from `make_train_step`.
      batch_at: step to global batch, a tree of host arrays `[batch, ...]`; a pure function, since
        it is called from a thread, ahead of time.
      num_steps: the step at which to end.
      base_key: key of the stage and round.
      checkpoints: saved to every `save_every` steps, at the end, and when interrupted.
      writer: given loss, grad_norm, lr, … of every `log_every`-th step, and of the last.
      progress: told about every step.
      tokens_per_batch: for `tokens_per_second`.
      tags: stage and round, `{"stage": "distill", "round": 1}`; in every metrics line.
      max_rejected: steps in a row with a non-finite loss or gradient (each leaves the state as it
        was) at which to give up.
      on_rejected: told, at log points, the step and metrics of every update that was rejected.
      check_replicas_every: steps between comparisons of what several devices hold copies of; 0 for
        none. A state is also compared before it is saved then.
      watchdog_seconds: time without a finished step after which the process ends, with the stacks of
        its threads on stderr; 0 waits for ever.

    Returns:
      The state after `num_steps`.

    Raises:
      Interrupted: after SIGINT or SIGTERM, when the step under way is done and saved. A second
        signal ends the process at once.
      NonFiniteError: see `max_rejected`; nothing is saved after the last checkpoint.
      ReplicaError: see `check_replicas_every`; nothing is saved after the last checkpoint.
    """
    mesh = mesh_of(state.step)
    start = int(jax.device_get(state.step))
    in_flight: collections.deque[jax.Array] = collections.deque()
    since_log: list[dict[str, jax.Array]] = []
    seconds_before, clock, last_logged = 0.0, time.monotonic(), start
    with contextlib.ExitStack() as stack:
        what = "a training step"
        if tags:
            what += f" ({', '.join(f'{name} {value}' for name, value in tags.items())})"
        beat = stack.enter_context(watchdog(watchdog_seconds, what))
        stop = stack.enter_context(_stop_signals())
        batches = stack.enter_context(_prefetched(batch_at, mesh, start, num_steps))
        base_key = place_whole(base_key, mesh)
        if writer is not None:
            writer.begin(tags or {}, start)
        if progress is not None:
            progress.update(start)
        for step, batch in enumerate(batches, start=start + 1):
            # Anything that crosses to or from the devices by accident would stall them: only
            # explicit transfers are let through.
            with jax.transfer_guard("disallow"):
                state, metrics = step_fn(state, batch, base_key)
            in_flight.append(metrics["loss"])
            since_log.append({name: metrics[name] for name in OF_REJECTIONS if name in metrics})
            if len(in_flight) > STEPS_IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            beat()
            stopping = stop.requested()
            last = step == num_steps
            if step % log_every == 0 or last or stopping:
                values = {name: float(v) for name, v in jax.device_get(metrics).items()}
                now = time.monotonic()
                elapsed, clock = now - clock, now
                seconds_before += elapsed
                values["seconds"] = seconds_before
                if tokens_per_batch:
                    values["tokens_per_second"] = (step - last_logged) * tokens_per_batch / elapsed
                _look_at_rejections(since_log, last_logged, max_rejected, on_rejected)
                last_logged, since_log = step, []
                if writer is not None:
                    writer.write(step, values)
                if progress is not None:
                    progress.update(step, values)
            elif progress is not None:
                progress.update(step)
            saving = checkpoints is not None and (step % save_every == 0 or last or stopping)
            if check_replicas_every and (saving or step % check_replicas_every == 0):
                check_replicas(state, step)
            if checkpoints is not None and saving:
                checkpoints.save(state)
                beat()
            if stopping:
                if checkpoints is not None:
                    checkpoints.wait()
                raise Interrupted(step, stop.name)
        if checkpoints is not None:
            checkpoints.wait()
    return state


def _look_at_rejections(
    metrics: Sequence[Mapping[str, jax.Array]],
    before: int,
    max_rejected: int,
    on_rejected: Callable[[int, Mapping[str, float]], None] | None,
) -> None:
    """Tells of every rejected update since step `before`; raises if too many came in a row."""
    for step, found in enumerate(jax.device_get(list(metrics)), start=before + 1):
        if not found.get("rejected"):
            continue
        if on_rejected is not None:
            on_rejected(step, {name: float(value) for name, value in found.items()})
        rejected = int(found["rejected_in_a_row"])
        if rejected >= max_rejected:
            raise NonFiniteError(
                f"The loss or its gradient was not finite (or the loss spiked) in {rejected} steps in a row, "
                f"up to step {step}; lower learning_rate, or look for bad values in data or teacher."
            )


@contextlib.contextmanager
def _prefetched(
    batch_at: Callable[[int], Tree], mesh: Any, start: int, num_steps: int
) -> Iterator[Iterator[Tree]]:
    """Batches of steps start … num_steps - 1, placed on the mesh, made ahead by one thread."""
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")

    def make(step: int) -> Tree:
        return place_batch(batch_at(step), mesh)

    def generate() -> Iterator[Tree]:
        ahead = collections.deque(
            pool.submit(make, step) for step in range(start, min(start + BATCHES_AHEAD, num_steps))
        )
        for step in range(start, num_steps):
            batch = ahead.popleft().result()
            if step + BATCHES_AHEAD < num_steps:
                ahead.append(pool.submit(make, step + BATCHES_AHEAD))
            yield batch

    try:
        yield generate()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Stop:
    """Whether a signal asked to stop; with several processes, whether all have agreed to."""

    def __init__(self) -> None:
        self.name = ""

    def requested(self) -> bool:
        if jax.process_count() > 1:
            if processes.preempted():
                self.name = self.name or "SIGTERM"
                return True
            return False
        return bool(self.name)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()
    # Python lets only the main thread set handlers; a loop in another thread is stopped by its
    # owner.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    if jax.process_count() > 1:
        # JAX's notifier has SIGTERM, and makes all processes agree on a step; Ctrl-C goes the same way.
        def pass_on(_number: int, _frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

        before = signal.signal(signal.SIGINT, pass_on)
        try:
            yield stop
        finally:
            signal.signal(signal.SIGINT, before)
        return
    old: dict[signal.Signals, Any] = {}

    def handle(number: int, _frame: Any) -> None:
        stop.name = signal.Signals(number).name
        for each in old:
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        # None is a handler that was not installed from Python and cannot be put back.
        old[number] = signal.getsignal(number) or signal.SIG_DFL
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
