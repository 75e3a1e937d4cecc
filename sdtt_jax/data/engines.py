"""Engines that run the tasks of a preparation: in this process, in several, or on Apache Beam's workers.

An engine takes tasks, each of which reads files and writes its own, and yields each task once it is done.
What is written does not depend on the engine.
"""

import concurrent.futures
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from sdtt_jax.config import require
from sdtt_jax.errors import DataError

LOG = logging.getLogger(__name__)
# After this many losses in a row without a finished task, the task itself is assumed to kill its
# workers.
LOSSES = 3


class Task(Protocol):
    """Work that any process can do and repeat. It only writes files, which appear when they are complete."""

    def run(self) -> None: ...


T = TypeVar("T", bound=Task)
Engine = Callable[[Sequence[T]], Iterator[T]]


def in_process(tasks: Sequence[T]) -> Iterator[T]:
    """The engine that runs everything in this process."""
    for task in tasks:
        task.run()
        yield task


def cores() -> int:
    """The number of cores that this process may use: in a job of SLURM, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def local(workers: int) -> Engine:
    """The engine that runs tasks in several processes on this machine; with one worker, in this process.

    A worker that dies (killed by the system for its memory, say) is replaced, and its task is run again.
    """
    require(workers >= 1, f"There must be at least one worker, not {workers}.")
    if workers == 1:
        return in_process

    # JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")

    def run(tasks: Sequence[T]) -> Iterator[T]:
        waiting, losses = list(tasks), 0
        others = multiprocessing.active_children()
        while waiting:
            count = min(workers, len(waiting))
            with concurrent.futures.ProcessPoolExecutor(count, context, _start_worker) as pool:
                futures = {pool.submit(task.run): task for task in waiting}
                try:
                    for future in concurrent.futures.as_completed(futures):
                        future.result()
                        losses = 0
                        waiting.remove(futures[future])
                        yield futures[future]
                except BrokenProcessPool:
                    losses += 1
                    LOG.warning("A worker was lost; its task is run again.")
                    if losses == LOSSES:
                        raise DataError(
                            f"{LOSSES} workers were lost in a row, killed or out of memory; run the same "
                            "command with fewer --workers to go on from here."
                        ) from None
                except BaseException:
                    # After Ctrl-C or an error, do not wait for the parts being read (half a minute each).
                    for worker in multiprocessing.active_children():
                        if worker not in others:
                            worker.kill()
                    pool.shutdown(cancel_futures=True)
                    raise

    return run


def _start_worker() -> None:
    """Prepares a worker: the tokenizer starts no threads, Ctrl-C is ignored, and it ends with its parent."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the parent too, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns when the parent has died, even if it was killed
        os._exit(1)


def _run_pickled(task: bytes) -> None:
    pickle.loads(task).run()


def beam(arguments: Sequence[str] = ()) -> Engine:
    """The engine that runs tasks with Apache Beam: its local runner, Dataflow, Flink or Spark.

    All workers must reach the corpus, the data folder and this package. Beam must be installed; its options
    are the arguments, for example `--runner=DataflowRunner`.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        apache_beam = None
    require(
        apache_beam is not None,
        "engine=beam needs Apache Beam, which is not installed: pip install -e '.[beam]', in a separate "
        "environment if other packages need another protobuf.",
    )

    def run(tasks: Sequence[T]) -> Iterator[T]:
        with apache_beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            (
                pipeline
                # Pickled, because Beam would turn named tuples into rows of its own kind.
                | "Tasks" >> apache_beam.Create([pickle.dumps(task) for task in tasks])
                | "Spread" >> apache_beam.Reshuffle()
                | "Run" >> apache_beam.Map(_run_pickled)
            )
        yield from tasks

    return run
