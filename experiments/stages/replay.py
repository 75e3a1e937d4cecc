"""Takes one training step twice from the same state, to compare the bits or to examine a batch."""

import re

import jax
import jax.numpy as jnp

from experiments.stages.context import Run
from experiments.stages.job import TrainingJob
from experiments.stages.training import ROUNDS, training_job
from sdtt_jax.checkpoints.digests import leaf_digests
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.placement import place_whole
from sdtt_jax.training.metrics import read_metrics
from sdtt_jax.training.state import TrainState
from sdtt_jax.trees import flat_leaves

NAME = re.compile(r"(teacher|judge|skeleton|([a-z_]+)/(\d+))(?:@(\d+))?")


class ReplayError(UserError):
    """The same step gave different bits."""


def replay(run: Run, name: str) -> None:
    """Takes a step twice and compares every leaf of the two states, bit for bit; writes nothing.

    `name` is `teacher`, `judge`, `skeleton`, `distill/ROUND`, or another distiller's `coupled/ROUND`, …. By
    default the step is the one after the latest checkpoint; `@STEP` names another, which is reached from the
    checkpoint before it.

    Raises:
      ConfigError: there is no such stage, round or step, or it has not begun.
      ReplayError: leaves differ; the message names them.
    """
    job, wanted = _named(run, name)
    config = job.config
    with Checkpoints(job.folder) as checkpoints:
        before = config.num_steps if wanted is None else wanted
        state = job.state(checkpoints, before)
    start = int(jax.device_get(state.step))
    step = start + 1 if wanted is None else wanted
    run.log(f"{name}: from the state after step {start}, step {step} twice")
    key = place_whole(job.key, run.mesh)
    for done in range(start, step - 1):
        state, _ = job.step_fn(state, job.batch_at(done), key)
    digests = []
    for _ in range(2):
        moved, metrics = job.step_fn(_copy(state), job.batch_at(step - 1), key)
        digests.append(leaf_digests(flat_leaves(moved)))
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        rejected = "; the update is rejected" if values["rejected"] else ""
        run.log(f"  loss {values['loss']:.9g}, gradient norm {values['grad_norm']:.9g}{rejected}")
    different = [path for path, digest in digests[0].items() if digests[1][path] != digest]
    if different:
        raise ReplayError(
            f"Step {step} of {name.partition('@')[0]}, taken twice from the same state, gave different bits "
            f"in {', '.join(different)}: a device computes wrongly, or an operation is not deterministic."
        )
    run.log(f"  the same bits in all {len(digests[0])} arrays")


def _named(run: Run, name: str) -> tuple[TrainingJob, int | None]:
    match = NAME.fullmatch(name)
    if match is None or match[2] not in (None, *ROUNDS):
        known = ", ".join(f"{stage}/ROUND" for stage in ROUNDS)
        raise ConfigError(
            f"--replay={name} names no training; give teacher, judge or {known}, perhaps with @STEP after it."
        )
    require(
        match[1] != "skeleton" or run.config.judge.skeleton > 0,
        "--replay=skeleton: the run trains no skeleton, because config.judge.skeleton is 0.",
    )
    require(
        not getattr(getattr(run.config, match[1], None), "checkpoint", ""),
        f"--replay={name}: the run trains no {match[1]}, because config.{match[1]}.checkpoint names one.",
    )
    number = int(match[3] or 0)
    if match[2] and number not in (rounds := run.config.rounds(match[2])):
        raise ConfigError(f"--replay={name}: rounds are 1 to {rounds[-1]}; choose one of them.")
    stage, step = match[2] or match[1], int(match[4] or 1)
    steps = getattr(run.config, "judge" if stage == "skeleton" else stage).train.num_steps
    if not 1 <= step <= steps:
        raise ConfigError(f"--replay={name}: its steps are 1 to {steps}.")
    # One that stopped at its first steps has no checkpoint; a bucket then has no folder either.
    workdir = run.workdir
    updates = read_metrics(workdir.rejected) if workdir.rejected.exists() else []
    rejected = any((line.get("stage"), line.get("round")) == (stage, number) for line in updates)
    if not processes.agree(rejected or workdir.stage(stage, number).exists()):
        raise ConfigError(
            f"--replay={name}: this training has not begun; leave --replay out to begin it."
        )
    return training_job(run, stage, number), step if match[4] else None


def _copy(state: TrainState) -> TrainState:
    """A copy of a state, placed like the original, because a step gives away the buffers of its state."""
    placement = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(lambda s: jax.tree.map(jnp.copy, s), out_shardings=placement)(state)
