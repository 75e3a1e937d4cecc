"""Several processes that run the same program: joining them, and agreeing on decisions.

Everything here is a no-op in a single process. What differs between processes (what one finds on disk,
whether one failed) must never decide on its own whether a collective computation is run: the others would
wait in it forever. So process 0 decides, and broadcasts what it decided.
"""

import concurrent.futures
import hashlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdtt_jax.config import differences, require
from sdtt_jax.errors import EXIT_INTERRUPTED, ConfigError, UserError, first_line
from sdtt_jax.parallel import ending
from sdtt_jax.parallel.environment import ADDRESS, COUNT, INDEX, port_of_step

MODES = ("auto", "on", "off")
# Open MPI's number of processes, and its address, which versions up to 4 set and by which JAX recognises it.
MPI_SIZE, MPI_ADDRESS = "OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri"
# Which variables give the number of processes: JAX's own, and those of Open MPI and SLURM. Open MPI comes
# first, as in JAX: in a SLURM job its helpers are steps of one task for each node. SLURM's first one counts
# the tasks of the step. In a shell that `salloc` opens on a node, a step of one task, the other one, which
# JAX reads, counts those of the whole allocation.
SIZES = (COUNT, MPI_SIZE, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")

T = TypeVar("T")
# Seconds by which JAX's own timeout exceeds that of `initialize`, so that the latter reports the error.
JAX_TIMEOUT_MARGIN = 30
# Numbers the calls of `preempted`.
_CALLS = itertools.count(1)
# How process 0 reports its failure to the others: as the index of the first matching type; 0 is success.
_FAILURES = (type(None), KeyboardInterrupt, ConfigError, BaseException)


def initialize(mode: str = "auto", timeout: int = 300, heartbeat: int = 100) -> None:
    """Joins the other processes of this job; to be called before anything touches a device.

    JAX recognises TPU pods, SLURM, Open MPI and Kubernetes (JobSet); elsewhere the environment gives
    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Args:
      mode: "auto" joins if there are several processes, "on" always, "off" never.
      timeout: seconds to wait for the others.
      heartbeat: seconds of silence after which a process counts as lost; JAX then ends all the others.

    Raises:
      ConfigError: the environment is incomplete, or "on" finds nothing to join.
      UserError: the others did not appear in time.
    """
    if mode == "off":
        return
    address = os.environ.get(ADDRESS) or ":0"
    port = address.rpartition(":")[2]
    require(
        port.isdecimal() and int(port) < 2**16,
        f"{ADDRESS}={address} has no port up to 65535; give HOST:PORT of process 0, such as node-1:12345.",
    )
    require(
        COUNT in os.environ or MPI_ADDRESS in os.environ or _number(MPI_SIZE) in (None, 1),
        f"Open MPI has started {os.environ.get(MPI_SIZE)} processes, but JAX recognises only its versions "
        f"up to 4; set {ADDRESS}=HOST:PORT of process 0, {COUNT} and {INDEX}, or give --distributed=off "
        "if each process is to work alone.",
    )
    late = (
        f"Not all processes of this job appeared within {timeout} s{{}}; is one of them missing, or the "
        "coordinator's port closed? --distributed=off runs one process alone."
    )
    # After its own timeout JAX does not always raise: it may end the process with a C++ stack trace.
    timer = threading.Timer(timeout, _give_up, ["Error: " + late.format("")])
    timer.daemon = True
    timer.start()
    os.environ.update(port_of_step(os.environ))
    try:
        # A job of one process would open a port that belongs to the whole allocation, and the next such job
        # there (an interactive shell, another step) would end it.
        if mode == "auto" and _number(INDEX) in (None, 0) and _job_size() == 1:
            return
        _join(
            num_processes=_number(COUNT),
            process_id=_number(INDEX),
            initialization_timeout=timeout + JAX_TIMEOUT_MARGIN,
            heartbeat_timeout_seconds=heartbeat,
        )
    except ValueError as error:
        # JAX's error for "no cluster found".
        if mode == "auto" and "coordinator_address" in str(error) and COUNT not in os.environ:
            return
        raise ConfigError(
            f"The processes of this job cannot find each other: {error} Set {ADDRESS}=HOST:PORT, {COUNT} "
            f"and {INDEX} on a cluster that JAX does not know, or --distributed=off for one process."
        ) from None
    except RuntimeError as error:
        if "must be called before" in str(error):
            raise
        raise UserError(late.format(f" ({first_line(error):.200})")) from None
    except KeyboardInterrupt:
        # Not raised further: on exit, Python would wait for the thread, and JAX for the other processes.
        _give_up(
            "Stopped while waiting for the other processes. Run the same command again.",
            EXIT_INTERRUPTED,
        )
    finally:
        timer.cancel()
    ending.listen()


def _job_size() -> int | None:
    """The number of processes that the environment names; None if it names none."""
    return next((_number(name) for name in SIZES if name in os.environ), None)


def _join(**options: Any) -> None:
    """Joins in a thread, because JAX waits in C++, where the main thread would miss a signal."""
    joined: concurrent.futures.Future[None] = concurrent.futures.Future()

    def join() -> None:
        try:
            jax.distributed.initialize(**options)
            joined.set_result(None)
        except BaseException as error:
            joined.set_exception(error)

    threading.Thread(target=join, name="joining", daemon=True).start()
    joined.result()


def _give_up(message: str, status: int = 1) -> None:
    sys.stderr.write(f"{message}\n")
    ending.leave(status)


def is_first() -> bool:
    """True on process 0, the only one that writes files and logs."""
    return jax.process_index() == 0


def agree(value: bool) -> bool:
    """Broadcasts process 0's value to all processes."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def anywhere(value: bool) -> bool:
    """Whether `value` is true on any process."""
    return bool(gathered(np.array(value)).any())


def barrier(name: str) -> None:
    """Waits until every process has arrived here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def preempted() -> bool:
    """Whether any process got SIGTERM and all must stop here; all processes must call this equally often.

    JAX's notifier catches the signal and chooses one call, by its number, at which all processes stop.
    Calls are numbered over the life of the process, not of a stage: otherwise a signal between two
    stages could choose a number that has passed.
    """
    return jax.process_count() > 1 and bool(
        multihost_utils.reached_preemption_sync_point(next(_CALLS))
    )


def stop_if_preempted() -> None:
    """Raises KeyboardInterrupt, in all processes at the same call, if any of them got SIGTERM.

    For work outside the training loop. As with `preempted`, all processes must call this equally often.
    A process that is alone is interrupted by Python.
    """
    if preempted():
        raise KeyboardInterrupt


def on_first(what: str, function: Callable[[], T]) -> T | None:
    """Runs `function` on process 0 while the others wait; returns its result there, None on the others.

    Args:
      what: the subject of the error message, for example "Preparing the data".
      function: must need no other process, so it runs no computation on the mesh.

    Raises:
      UserError: on the others, if `function` raised; a ConfigError if `function` raised one. Process 0
        raises what `function` raised.
      KeyboardInterrupt: on all, if any process got SIGTERM meanwhile.
    """
    result: T | None = None
    failure: BaseException | None = None
    if is_first():
        try:
            with ending.interruptible():
                result = function()
        except BaseException as error:
            failure = error
    # All must end with the same exit status, or a launcher might retry what cannot succeed.
    kind = next(i for i, kind in enumerate(_FAILURES) if isinstance(failure, kind))
    if jax.process_count() > 1:
        kind = int(multihost_utils.broadcast_one_to_all(np.int32(kind)))
    if failure is not None:
        raise failure
    if _FAILURES[kind] is KeyboardInterrupt:
        raise KeyboardInterrupt
    if kind:
        error_type = ConfigError if _FAILURES[kind] is ConfigError else UserError
        raise error_type(f"{what} failed on process 0, whose output says why.")
    return result


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array on every process, wherever its pieces lie.

    Raises:
      ConfigError: it is being traced, as by `jit`, and so has no values yet.
    """
    require(
        not isinstance(array, jax.core.Tracer),
        "This works on values and cannot be traced by jit, vmap or grad; inside them, use a function of "
        "arrays, such as sdtt_jax.sample, or a model's denoise and score.",
    )
    # Of an array that every device holds whole, this process has a copy, which needs no program to gather it.
    here = not isinstance(array, jax.Array) or array.is_fully_addressable
    if not (here or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(jax.device_get(array))


def gathered(values: np.ndarray) -> np.ndarray:
    """The `values` of every process, on all of them: `[processes, *values.shape]`."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def require_same(what: str, facts: Mapping[str, Any], remedy: str) -> None:
    """Checks that all processes hold the same facts; all of them must call this.

    Only a digest is exchanged, unless it differs.

    Args:
      what: the subject of the error message, for example "The config".
      facts: JSON-ready, mappings within mappings.
      remedy: what to do about a difference, for the end of the message.

    Raises:
      ConfigError: on all processes: they differ. Names the processes that differ from process 0, and the
        first field.
    """
    text = json.dumps(facts, sort_keys=True, default=str).encode()
    digests = gathered(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
    others = [i for i, digest in enumerate(digests) if not np.array_equal(digest, digests[0])]
    if not others:
        return
    sizes = gathered(np.array(len(text), np.int32))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    texts = [found[:size].tobytes() for found, size in zip(gathered(padded), sizes, strict=True)]
    first, *more = differences(json.loads(texts[0]), json.loads(texts[others[0]]))
    number = f"processes {', '.join(map(str, others))}" if others[1:] else f"process {others[0]}"
    raise ConfigError(
        f"{what} of {number} and of process 0 differ ({first:.300}"
        f"{f', and {len(more)} more' if more else ''}); {remedy}."
    )


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} must be a number.")
    return int(text)
