"""How Orbax is asked to work: what it keeps, how it writes and reads, and what it leaves to others."""

from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


def kept(keep: int | None, keep_every: int) -> Any:
    """The latest `keep` checkpoints, or all if None, and every step that `keep_every` divides; 0 for none."""
    policies = ocp.training.preservation_policies
    latest = policies.LatestN(keep)
    if not keep_every:
        return latest
    return policies.AnyPreservationPolicy([latest, policies.EveryNSteps(keep_every)])


def writing() -> ocp.Context:
    """To be used around saving."""
    # Left to itself Orbax stores a dict of numbers as arrays; this keeps "meta" a readable JSON file.
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    # Devices that hold the same share in writing it, for which Orbax compiles a slice per device and shape:
    # not worth it for small leaves. Of a state on eight devices they took most of the first save's time.
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    return context


def reading() -> ocp.Context:
    """To be used around loading: each process reads for itself."""
    # Orbax would have the processes wait for each other to have read, also for one that could not.
    context = ocp.Context()
    if jax.process_count() > 1:
        here = jax.process_index()
        context.multiprocessing.active_processes = {here}
        context.multiprocessing.primary_host = here
    return context


def leave_preemption_to_us(checkpointer: ocp.training.Checkpointer) -> None:
    """Keeps it from asking JAX whether to stop, which `parallel.processes` does."""
    # At each save, and once more from the thread that ends it, Orbax asks JAX whether its training step is
    # the call at which all processes stop. JAX keeps one number, the last that was asked for: after Orbax's,
    # it chose a call that `processes.preempted`, which numbers its own, never makes, and SIGTERM was ignored.
    manager = getattr(checkpointer, "_manager", None)
    if manager is not None:
        manager.reached_preemption = lambda _step: False
