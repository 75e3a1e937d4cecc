"""GKE: a JobSet, for TPUs and GPUs.

JobSet's failure policy: https://jobset.sigs.k8s.io/docs/tasks/failure_policy/ and, for the patterns,
https://github.com/kubernetes-sigs/jobset/pull/1033 (in 0.10.1). Messages of a Job's pod failure policy:
https://kubernetes.io/docs/tasks/job/pod-failure-policy/. TPU slices as JobSets, where GKE itself sets the
TPU_* and MEGASCALE_* variables that JAX reads:
https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice.
"""

import shlex

from launch.pods.spec import Files, PodSpec, for_kubernetes, require_cloud, template
from sdtt_jax.config import require

COORDINATOR_PORT = 8476
_SPOT = "cloud.google.com/gke-spot"


def render(spec: PodSpec) -> Files:
    """`jobset.yaml`."""
    require_cloud(spec, "image")
    slice_ = spec.slice
    tpu = slice_.chip.kind == "tpu"
    require(
        not tpu or spec.slices == 1 or slice_.hosts > 1,
        f"slices={spec.slices}: GKE connects only slices of several hosts, but {spec.accelerator} is one "
        "host; choose a larger accelerator.",
    )
    require(
        "@" not in spec.service_account,
        f"service_account={spec.service_account!r}: on GKE it is the name of one of Kubernetes, no e-mail "
        "address; leave it empty for that of the nodes.",
    )
    if tpu:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": slice_.chip.gke,
            "cloud.google.com/gke-tpu-topology": slice_.topology,
        }
        tolerations = []
    else:
        selector = {"cloud.google.com/gke-accelerator": slice_.chip.gke}
        tolerations = ["nvidia.com/gpu"]
    if spec.spot:
        selector[_SPOT] = "true"
        tolerations.append(_SPOT)
    if spec.reservation:
        selector["cloud.google.com/reservation-name"] = spec.reservation
    jobset = template(
        "jobset.yaml.j2",
        spec,
        tpu=tpu,
        jobs=spec.slices if tpu else 1,
        pods=slice_.hosts if tpu else spec.slices,
        selector=selector,
        tolerations=tolerations,
        port=COORDINATOR_PORT,
        coordinator=f"{spec.name}-workers-0-0.{spec.name}:{COORDINATOR_PORT}",
        command=[*map(for_kubernetes, spec.command)],
        resource="google.com/tpu" if tpu else "nvidia.com/gpu",
        chips_per_host=slice_.chips_per_host,
    )
    return {"jobset.yaml": jobset}


def next_steps(spec: PodSpec, directory: str) -> list[str]:
    """The commands that follow."""
    file = shlex.quote(f"{directory}/jobset.yaml")
    where = f"--namespace={shlex.quote(spec.gke.namespace)}"
    first = ",".join(
        (
            f"jobset.sigs.k8s.io/jobset-name={spec.name}",
            "jobset.sigs.k8s.io/job-index=0",
            "batch.kubernetes.io/job-completion-index=0",
        )
    )
    return [
        f"kubectl apply -f {file}",
        f"kubectl get jobset {spec.name} {where}",
        f"kubectl logs {where} --follow --selector={first}",
        "# saves and stops; `apply` goes on from there",
        f"kubectl delete --cascade=foreground -f {file}",
    ]
