"""TPU VMs from queued resources: a script for the user's machine, and one for the hosts.

Options of gcloud: https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources (create, ssh,
describe, delete). A TPU in a container: https://docs.cloud.google.com/tpu/docs/run-in-container; the
Python of TPU VMs themselves is older than 3.11.
"""

import shlex

from launch.pods.spec import Files, PodSpec, require_cloud, require_tpu, template


def render(spec: PodSpec) -> Files:
    """`pod.sh` and `host.sh`."""
    require_tpu(spec, "tpu_vm")
    require_cloud(spec, "image", "zone")
    capacity = []
    if spec.spot:
        capacity.append("--spot")
    if spec.reservation:
        capacity.append("--reserved")
    if spec.service_account:
        capacity.append(f"--service-account={shlex.quote(spec.service_account)}")
    pod = template(
        "pod.sh.j2",
        spec,
        runtime=spec.slice.chip.runtime,
        hosts=spec.hosts,
        project=f"--project={shlex.quote(spec.project)}" if spec.project else "",
        capacity="".join(f" \\\n    {option}" for option in capacity),
    )
    registry = spec.image.split("/", 1)[0]
    host = template(
        "host.sh.j2",
        spec,
        registry=registry if registry.endswith((".pkg.dev", "gcr.io")) else "",
        command=spec.shell_command,
    )
    return {"pod.sh": pod, "host.sh": host}


def next_steps(_spec: PodSpec, directory: str) -> list[str]:
    """The commands that follow."""
    script = shlex.quote(f"{directory}/pod.sh")
    return [
        f"bash {script} run      # creates, installs, runs; repeat it after any interruption",
        f"bash {script} logs     # from another terminal",
        f"bash {script} delete   # gives the TPUs back",
    ]
