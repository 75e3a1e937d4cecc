"""SkyPilot: a managed job.

Fields: https://docs.skypilot.co/en/latest/reference/yaml-spec.html; recovery:
https://docs.skypilot.co/en/latest/examples/managed-jobs.html; TPUs, whose hosts all run the commands:
https://docs.skypilot.co/en/latest/reference/tpu.html.
"""

import shlex

from launch.pods.gke import COORDINATOR_PORT
from launch.pods.spec import Files, PodSpec, refuse_fields, require_cloud, template
from sdtt_jax.config import require


def render(spec: PodSpec) -> Files:
    """`task.yaml`."""
    require_cloud(spec)
    tpu = spec.slice.chip.kind == "tpu"
    require(
        not tpu or spec.slices == 1,
        f"slices={spec.slices}: SkyPilot runs one TPU slice; use tpu_vm, gke or xpk for several.",
    )
    where = "SkyPilot takes it from ~/.sky/config.yaml"
    refuse_fields(
        spec,
        reservation=f"{where} (gcp.specific_reservations); leave the field empty.",
        service_account=f"{where} (gcp.remote_identity); leave the field empty.",
    )
    require(
        spec.grace_seconds == PodSpec.grace_seconds,
        f"grace_seconds={spec.grace_seconds}: a task of SkyPilot has no field for it; leave it at "
        f"{PodSpec.grace_seconds}, and save more often (--config.distill.train.save_every).",
    )
    cloud = "gcp" if tpu or spec.zone else ""
    task = template(
        "task.yaml.j2",
        spec,
        nodes=1 if tpu else spec.slices,
        infra=f"{cloud}/*/{spec.zone}" if spec.zone else cloud,
        accelerators=spec.slice.skypilot,
        runtime=spec.slice.chip.runtime,
        extras="tpu,gcs,smollm2" if tpu else "cuda,gcs,smollm2",
        port=COORDINATOR_PORT,
        command=spec.shell_command,
    )
    return {"task.yaml": task}


def next_steps(spec: PodSpec, directory: str) -> list[str]:
    """The commands that follow."""
    # A task has no field for the project, nor may its `config` have one.
    project = (
        [f"gcloud config set project {spec.project}   # where SkyPilot takes it from"]
        if spec.project
        else []
    )
    return [
        *project,
        f"sky jobs launch --name {spec.name} {shlex.quote(f'{directory}/task.yaml')}   # in the checkout",
        "sky jobs queue",
        f"sky jobs logs --name {spec.name}",
        f"sky jobs cancel --name {spec.name}",
    ]
