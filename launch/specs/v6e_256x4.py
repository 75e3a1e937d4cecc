"""The paper's recipe at 24 × 1536 on four v6e pods of 256 chips, from spot capacity, queued by Kueue.

The bucket, and what a launcher needs of image, project and cluster, are given on the command line.
"""

from ml_collections import ConfigDict

from launch.pods.spec import GkeConfig, PodSpec, spec_dict


def get_config() -> ConfigDict:
    """Four slices."""
    return spec_dict(
        PodSpec(
            name="sdtt-large",
            accelerator="v6e-256",
            slices=4,
            config="experiments/configs/owt_large.py",
            workdir="gs://my-bucket/sdtt/large",
            zone="us-east5-a",
            spot=True,
            gke=GkeConfig(queue="multislice-queue"),
        )
    )
