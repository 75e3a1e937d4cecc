"""SLURM: a batch script for nodes of GPUs.

Options: https://slurm.schedmd.com/sbatch.html and https://slurm.schedmd.com/srun.html (return value: the
highest of all tasks). JAX reads SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID and SLURM_LOCALID, and takes
the last as the number of the task's GPU (jax/_src/clusters/slurm_cluster.py).
"""

import shlex

from launch.pods.spec import Files, PodSpec, refuse_fields, require_sent, template
from sdtt_jax.config import require

# Seconds that tasks have after the first one has ended, before SLURM ends them.
_STRAGGLERS = 600


def render(spec: PodSpec) -> Files:
    """`job.sbatch`."""
    require(
        spec.slice.chip.kind == "gpu",
        f"accelerator={spec.accelerator!r}: slurm runs GPUs; use tpu_vm, gke, xpk or skypilot for TPUs.",
    )
    local = not spec.workdir.startswith("gs://")
    require(
        not local or spec.workdir.startswith("/"),
        f"workdir={spec.workdir!r} must be an absolute path that all nodes see, or gs://BUCKET/PATH.",
    )
    refuse_fields(
        spec,
        spot="SLURM has partitions for that; set spec.slurm.partition.",
        service_account="SLURM's nodes use the credentials that they have; leave the field empty.",
    )
    days, _, clock = spec.slurm.time_limit.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    limit = 3600 * (24 * int(days or 0) + hours) + 60 * minutes + seconds
    require(
        limit == 0 or limit > spec.grace_seconds,  # 0 is no limit
        f"slurm.time_limit={spec.slurm.time_limit}: SLURM would ask the tasks to save and stop at once, "
        f"{spec.grace_seconds} seconds before (grace_seconds), and so at every restart; give more time.",
    )
    container = []
    command = spec.command
    if spec.image:
        require_sent(spec, image=True)
        # Options of Pyxis, https://github.com/NVIDIA/pyxis.
        container = [f"--container-image={spec.image}", "--container-workdir=/app"]
        if local:
            require(
                ":" not in spec.workdir and "," not in spec.workdir,
                f"workdir={spec.workdir!r} is mounted into the container; it may hold neither ':' nor ','.",
            )
            container.append(f"--container-mounts={spec.workdir}:{spec.workdir}")
    else:
        for name in ("checkout", "python"):
            require(
                getattr(spec.slurm, name).startswith("/"),
                f"slurm.{name} must be an absolute path that all nodes see (or give an image); set "
                f"spec.slurm.{name}.",
            )
        command = [spec.slurm.python, *command[1:]]
    job = template(
        "job.sbatch.j2",
        spec,
        gpus=spec.slice.chips,
        mount=spec.workdir if spec.image and local else "",
        wait=_STRAGGLERS,
        container="".join(f" \\\n  {shlex.quote(option)}" for option in container),
        command=shlex.join(command),
    )
    return {"job.sbatch": job}


def next_steps(spec: PodSpec, directory: str) -> list[str]:
    """The commands that follow."""
    return [
        f"sbatch {shlex.quote(f'{directory}/job.sbatch')}",
        f"squeue --me --name={spec.name}",
        f"tail -f {spec.name}-*.log",
        "# saves and requeues the job; without --signal=TERM it is cancelled for good",
        f"scancel --signal=TERM --name={spec.name}",
    ]
