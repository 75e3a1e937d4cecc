"""Who does the work of a preparation: this process, several of this machine, or Apache Beam's workers.

An engine is given tasks, each of which reads files and writes files of its own, and yields each when it is
done. It decides nothing about what is written, so all engines write the same bytes.
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
# After so many losses in a row without a finished task, it is the task that kills its workers.
LOSSES = 3


class Task(Protocol):
    """Work that can be done anywhere, and again: it has no effect but the files that it writes whole."""

    def run(self) -> None: ...


T = TypeVar("T", bound=Task)
Engine = Callable[[Sequence[T]], Iterator[T]]


def in_process(tasks: Sequence[T]) -> Iterator[T]:
    """The engine of one process, this one."""
    for task in tasks:
        task.run()
        yield task


def local(workers: int) -> Engine:
    """The engine of several processes of this machine.

    A worker that is lost (killed by the system for its memory, say) is replaced, and what it had begun is
    done again.

    Args:
      workers: how many; 1 is this process itself.
    """
    require(workers >= 1, f"There must be at least one worker, not {workers}.")
    if workers == 1:
        return in_process

    def run(tasks: Sequence[T]) -> Iterator[T]:
        waiting, losses = list(tasks), 0
        others = multiprocessing.active_children()
        while waiting:
            with _pool(min(workers, len(waiting))) as pool:
                futures = {pool.submit(_run, task): task for task in waiting}
                try:
                    for future in concurrent.futures.as_completed(futures):
                        future.result()
                        losses = 0
                        waiting.remove(futures[future])
                        yield futures[future]
                except BrokenProcessPool:
                    losses += 1
                    LOG.warning("A worker was lost; what it had begun is done again.")
                    if losses == LOSSES:
                        raise DataError(
                            f"{LOSSES} workers were lost one after the other, killed or out of memory; the "
                            "same command with fewer --workers goes on from here."
                        ) from None
                except BaseException:
                    # Ctrl-C, or an error: the parts that are being read, half a minute each, are not awaited.
                    for worker in multiprocessing.active_children():
                        if worker not in others:
                            worker.kill()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    return run


def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    # JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)


def _start_worker() -> None:
    """Of two ways to use many cores, processes and the tokenizer's threads, one is enough."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # which reaches the parent too, and it ends its workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # it was killed, and told nobody
        os._exit(1)


def _run(task: Task) -> None:
    task.run()


def _run_pickled(task: bytes) -> None:
    pickle.loads(task).run()


def beam(arguments: Sequence[str] = ()) -> Engine:
    """The engine of Apache Beam: its local runner, Dataflow, Flink, Spark.

    All workers must reach the corpus, the data folder and this package.

    Args:
      arguments: Beam's own, for example `--runner=DataflowRunner`.

    Raises:
      ConfigError: Beam is not installed.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        apache_beam = None
    require(
        apache_beam is not None,
        "engine=beam needs Apache Beam, which is not installed: pip install 'sdtt_jax[beam]', in an "
        "environment of its own where other packages want another protobuf.",
    )

    def run(tasks: Sequence[T]) -> Iterator[T]:
        with apache_beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            (
                pipeline
                # As bytes, for Beam would make rows of its own kind of named tuples.
                | "Tasks" >> apache_beam.Create([pickle.dumps(task) for task in tasks])
                | "Spread" >> apache_beam.Reshuffle()
                | "Run" >> apache_beam.Map(_run_pickled)
            )
        yield from tasks

    return run
