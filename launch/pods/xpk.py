"""xpk: a script with its one command, which makes a JobSet too.

Options: https://github.com/AI-Hypercomputer/xpk/blob/main/src/xpk/parser/workload.py. Its pod failure policy
ends the job on every exit status except 42, 127 to 255 and those of --restart-on-exit-codes
(`get_restart_exit_codes` in src/xpk/commands/workload.py), so that status 2 ends it.
"""

import shlex

from launch.pods.spec import (
    Files,
    PodSpec,
    for_kubernetes,
    refuse_fields,
    require_cloud,
    require_tpu,
    template,
)
from sdtt_jax.config import require

_QUEUE = "multislice-queue"  # LOCAL_QUEUE_NAME in src/xpk/core/


def render(spec: PodSpec) -> Files:
    """`workload.sh`."""
    require_tpu(spec, "xpk")
    require_cloud(spec, "image", "zone", "gke.cluster")
    refuse_fields(
        spec,
        service_account="a workload of xpk has that of the node pools, which `xpk cluster create` makes; "
        "leave the field empty, or use gke.",
    )
    require(
        spec.gke.queue in ("", _QUEUE),
        f"gke.queue={spec.gke.queue!r}: xpk puts its workloads into {_QUEUE}; leave the field empty, or use "
        "gke.",
    )
    require(
        spec.gke.namespace == "default",
        f"gke.namespace={spec.gke.namespace!r}: xpk puts its workloads into 'default'; leave it so, or use "
        "gke.",
    )
    capacity = ["--spot"] if spec.spot else []
    if spec.reservation:
        capacity.append(f"--reservation={spec.reservation}")
    options = [
        f"--workload={spec.name}",
        *_cluster(spec),
        f"--tpu-type={spec.accelerator}",
        f"--num-slices={spec.slices}",
        f"--docker-image={spec.image}",
        *capacity,
        f"--max-restarts={spec.max_restarts}",
        "--restart-on-exit-codes=1,75",
        f"--termination-grace-period-seconds={spec.grace_seconds}",
        f"--command={for_kubernetes(spec.shell_command)}",
    ]
    workload = template("workload.sh.j2", spec, options=" \\\n  ".join(map(shlex.quote, options)))
    return {"workload.sh": workload}


def next_steps(spec: PodSpec, directory: str) -> list[str]:
    """The commands that follow."""
    cluster = shlex.join(_cluster(spec))
    return [
        f"bash {shlex.quote(f'{directory}/workload.sh')}",
        f"xpk workload list {cluster}",
        "# saves and stops; workload.sh goes on from there",
        f"xpk workload delete --workload={spec.name} {cluster}",
    ]


def _cluster(spec: PodSpec) -> list[str]:
    project = [f"--project={spec.project}"] if spec.project else []
    return [f"--cluster={spec.gke.cluster}", *project, f"--zone={spec.zone}"]
