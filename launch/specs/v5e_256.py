"""The paper's recipe at 12 × 768 on one v5e pod of 256 chips."""

from ml_collections import ConfigDict

from launch.pods.spec import GkeConfig, PodSpec, spec_dict


def get_config() -> ConfigDict:
    """One slice."""
    return spec_dict(
        PodSpec(
            name="sdtt-small",
            accelerator="v5litepod-256",
            config="experiments/configs/owt_small.py",
            workdir="gs://my-bucket/sdtt/small",
            image="us-docker.pkg.dev/my-project/sdtt/sdtt:tpu",
            project="my-project",
            zone="us-west4-a",
            gke=GkeConfig(cluster="my-cluster"),
        )
    )
