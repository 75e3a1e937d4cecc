"""The set-up of Orbax: what it keeps, how it writes and reads, and when a checkpoint is complete."""

import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from sdtt_jax.config import require
from sdtt_jax.paths import PathLike, absolute

# Orbax's name for the file that it writes last into a folder in a bucket.
COMMITTED = "commit_success.txt"
# Seconds in which several processes must have saved. One whose part fails (its disk is full) never arrives at
# Orbax's barrier, where the others wait for it; the next save, and the end of a training, wait with them.
# One host that writes 130 GB, the state of 8 billion parameters, at 0.5 GB/s needs 260 s.
PATIENCE = 600
# Characters that a glob pattern does not take literally.
IN_PATTERNS = "*?[\\"


def require_plain(folder: PathLike) -> None:
    """Refuses a path with a character of `IN_PATTERNS`: Orbax would write checkpoints without arrays there.

    Orbax finds the files of each process by a glob pattern that contains the path. Where it finds none, it
    logs a line and still commits the checkpoint. Checkpoints that were written elsewhere and copied there
    can be read, unless the path has a backslash.

    Raises:
      ConfigError: the path has such a character.
    """
    path = os.fspath(absolute(folder))
    found = sorted({*path} & {*IN_PATTERNS})
    require(
        not found,
        f"{path} has {' and '.join(found)} in its path, where Orbax writes checkpoints that cannot be read "
        f"again; give a folder without any of {' '.join(IN_PATTERNS)}",
    )


def kept(keep: int | None, keep_every: int) -> Any:
    """Keeps the latest `keep` checkpoints (None: all), and every step that `keep_every` divides (0: none)."""
    policies = ocp.training.preservation_policies
    latest = policies.LatestN(keep)
    if not keep_every:
        return latest
    return policies.AnyPreservationPolicy([latest, policies.EveryNSteps(keep_every)])


def writing() -> ocp.Context:
    """The context for saving."""
    # By default Orbax stores a dict of numbers as arrays; this keeps "meta" a readable JSON file.
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    if jax.process_count() > 1:
        context.asynchronous.timeout_secs = PATIENCE
    # Devices that hold the same array share the writing of it, for which Orbax compiles a slice per device
    # and shape. For small leaves that is not worth it: for a state on eight devices it took most of the first
    # save's time.
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    return context


def late(error: Exception) -> str:
    """What to say of a save that ran out of time: in a job, mostly that another process failed to save."""
    if jax.process_count() == 1 or not isinstance(error, TimeoutError):
        return ""
    return (
        " Another process has not saved its part in that time; if it failed, its output says why."
    )


def reading() -> ocp.Context:
    """The context for loading, in which each process reads for itself."""
    # By default Orbax makes every process wait until all have read, even for one that could not read.
    context = ocp.Context()
    if jax.process_count() > 1:
        here = jax.process_index()
        context.multiprocessing.active_processes = {here}
        context.multiprocessing.primary_host = here
    return context


def disable_orbax_preemption(checkpointer: ocp.training.Checkpointer) -> None:
    """Stops Orbax from polling JAX's preemption point; only `processes.preempted` may."""
    # At each save, and once more from the thread that finishes it, Orbax polls with the number of its
    # training step. JAX keeps only the last number it was polled with, and derives from it the call at which
    # all processes stop. `processes.preempted` numbers its own calls and would never make that one, so that
    # SIGTERM would be ignored.
    manager = getattr(checkpointer, "_manager", None)
    if manager is not None:
        manager.reached_preemption = lambda _step: False


def is_committed(folder: Path) -> bool:
    """Whether a folder exists that Orbax has written completely.

    On a disk Orbax renames a folder once it is complete. In Google's buckets, where nothing can be renamed,
    it writes in place and adds a marker file at the end, without which it reads nothing.
    """
    in_place = os.fspath(folder).startswith("gs://")
    return (folder / COMMITTED if in_place else folder).exists()
