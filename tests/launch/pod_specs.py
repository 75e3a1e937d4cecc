"""Specs for the pod tests, and functions that make an example and write rendered files."""

import dataclasses

from launch.pods import gke, skypilot, slurm, tpu_vm, xpk
from launch.pods.spec import GkeConfig, PodSpec
from launch.specs import h100_slurm, v5e_256, v6e_64x4
from sdtt_jax.config import from_mapping

LAUNCHERS = {"tpu_vm": tpu_vm, "gke": gke, "xpk": xpk, "skypilot": skypilot, "slurm": slurm}
SPECS = {"v5e_256": v5e_256, "v6e_64x4": v6e_64x4, "h100_slurm": h100_slurm}
TPU = PodSpec(
    name="run",
    accelerator="v5litepod-8",
    workdir="gs://bucket/run",
    image="us-docker.pkg.dev/p/sdtt/sdtt:tpu",
    zone="us-west4-a",
    max_restarts=2,
    gke=GkeConfig(cluster="c"),
)
GPU = dataclasses.replace(TPU, accelerator="h100", slices=4)


def example(name):
    """A spec of launch/specs with what is left to the command line."""
    spec = from_mapping(PodSpec, SPECS[name].get_config().to_dict(), where="spec")
    if spec.slice.chip.kind == "gpu":
        return spec
    gke = dataclasses.replace(spec.gke, cluster="my-cluster")
    return dataclasses.replace(spec, image=TPU.image, project="my-project", gke=gke)


def write(files, directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory
