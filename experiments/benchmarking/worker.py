"""One variant of the benchmark in a process of its own, so that its peak memory is its own.

The parent holds a `Worker`; the process runs `main` of this module. They exchange lines of JSON: the job goes
in, then phases and the measurements of building it come out; after that each "run" is answered with the
measurements of one repetition. The process ends with its input, so it never outlives its parent.
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax

from experiments.benchmarking.cases import Job, Repetition, build
from experiments.benchmarking.data import build_data
from experiments.benchmarking.memory import TooLargeError, system_bytes
from experiments.cli.memory import keep_freed_memory
from experiments.settings import run_config
from sdtt_jax.errors import UserError, first_line
from sdtt_jax.training.step import give_back_memory

ROOT = Path(__file__).resolve().parents[2]
MODULE = "experiments.benchmarking.worker"
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "MemoryError", "std::bad_alloc")


def child_environment(**defaults: str) -> dict[str, str]:
    """This process's environment, for a child that imports these packages from this source tree."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class WorkerError(UserError):
    """A worker process that ended before it was asked to; the message says why."""


class Worker(contextlib.AbstractContextManager["Worker"]):
    """The parent's end of one worker process, which measures its peak memory too.

    A context manager that ends the process on leaving. Failures raise `WorkerError`.
    """

    def __init__(self, job: Job):
        self.job = job
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (__exit__ closes it)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=child_environment(
                # Two workers share a GPU: neither may take all of its memory at once.
                XLA_PYTHON_CLIENT_PREALLOCATE="false",
                # A step on a CPU takes 1.4 GB of fresh memory: 400,000 small pages cost 0.8 s of its 8.9 s of
                # CPU time, huge ones nothing that can be measured.
                GLIBC_TUNABLES="glibc.malloc.hugetlb=1",
            ),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def __exit__(self, *exception: Any) -> None:
        with contextlib.suppress(OSError):
            self._requests.close()
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._stderr.close()

    def prepare(self, on_phase: Callable[[str], None]) -> dict[str, Any]:
        """Compiles the job and warms it up, telling each phase; returns the measurements of building it."""
        self._send(dataclasses.asdict(self.job))
        while "phase" in (message := self._receive()):
            on_phase(message["phase"])
        return message

    def run(self, limit_s: float = 0.0) -> dict[str, Any]:
        """The measurements of one repetition; one longer than `limit_s` (0: no limit) ends the process."""
        timer = threading.Timer(limit_s or threading.TIMEOUT_MAX, self._process.kill)
        timer.start()
        try:
            self._send("run")
            return self._receive()
        except WorkerError as error:
            if timer.is_alive():
                raise
            raise WorkerError(f"took longer than --limit_s={limit_s:g}") from error
        finally:
            timer.cancel()

    def _send(self, message: Any) -> None:
        # A broken pipe shows when the answer is read.
        with contextlib.suppress(OSError):
            self._requests.write(json.dumps(message) + "\n")
            self._requests.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise WorkerError(self._cause())
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise WorkerError(message["error"])
        return message

    def _cause(self) -> str:
        status = self._process.wait()
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        if status == -signal.SIGKILL:
            return "killed by the system (SIGKILL), most likely out of memory"
        for line in reversed(lines):
            if any(sign in line for sign in OUT_OF_MEMORY):
                return f"out of memory: {line[:200]}"
        last = lines[-1][:200] if lines else "no message"
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"ended with {how}: {last}"


class Here(contextlib.AbstractContextManager["Here"]):
    """Like `Worker`, but in this process and without measurements of memory."""

    def __init__(self, job: Job):
        self.job = job

    def __exit__(self, *exception: Any) -> None:
        self._repeat: Callable[[], Repetition] | None = None  # frees the parameters too

    def prepare(self, on_phase: Callable[[str], None]) -> dict[str, Any]:
        with _failing():
            self._repeat, setup = _ready(self.job, on_phase)
        return setup

    def run(self, limit_s: float = 0.0) -> dict[str, Any]:
        """The measurements of one repetition, however long it takes."""
        del limit_s
        assert self._repeat is not None
        with _failing():
            return dict(self._repeat())


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Turns an error of the device (most often out of memory) into a failure of this job alone."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, TooLargeError) as error:
        raise WorkerError(first_line(error)[:200]) from error


def main() -> None:
    """Serves one job from standard input."""
    # What libraries print must not mix with the answers.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Where memory runs out, Linux should end this process, not another one of the user's.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    line = sys.stdin.readline()
    if not line:
        return
    try:
        job = Job(**json.loads(line))
        keep_freed_memory(run_config(job.config).model)
        repeat, setup = _ready(job, lambda phase: _answer(channel, {"phase": phase}))
        _answer(channel, setup)
        setup_peak = peak_bytes()
        reset = _reset_peak()
        for _ in sys.stdin:
            repetition = repeat()
            run_peak = peak_bytes()
            peaks = {
                "peak_gb": max(setup_peak, run_peak) / 1e9,
                "run_peak_gb": run_peak / 1e9 if reset else None,
                "device_peak_gb": _device_peak_gb() if _computes(job) else None,
            }
            _answer(channel, {**repetition, **peaks})
    except UserError as error:
        _answer(channel, {"error": str(error)})
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # the terminal tells the parent too, or the parent is gone


def _ready(job: Job, log: Callable[[str], None]) -> tuple[Callable[[], Repetition], dict[str, Any]]:
    """Builds a job and warms it up; returns the function that repeats it, and what building it measured."""
    began = time.perf_counter()
    case = build(job, log) if _computes(job) else build_data(job, log)
    if job.warm_up:
        log("warming up")
        case.repeat()
    setup_s = time.perf_counter() - began
    first = jax.devices()[0] if _computes(job) else None
    device = first and {"platform": first.platform, "kind": first.device_kind}
    return case.repeat, {**case.setup, "setup_s": setup_s, "device": device}


def _computes(job: Job) -> bool:
    """Whether a job uses a device; the data suite does not, and should not initialise one."""
    return job.suite != "data"


def _answer(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def peak_bytes() -> int:
    """Peak resident memory of this process so far, or since `_reset_peak`."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = used if sys.platform == "darwin" else used * 1024
    return system_bytes("/proc/self/status", "VmHWM") or largest


def _reset_peak() -> bool:
    """Restarts the measurement of peak memory, to leave out the building; False if that is impossible."""
    give_back_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
    except OSError:
        return False
    return True


def _device_peak_gb() -> float | None:
    """Peak memory according to the first device's allocator; the CPU reports none."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 1e9 if stats and "peak_bytes_in_use" in stats else None


if __name__ == "__main__":
    main()
