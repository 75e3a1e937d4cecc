"""The paper's recipe at 24 × 1536 on four v6e slices of 64 chips, from spot capacity, queued by Kueue.

Its batch of 128 sequences is split over data * fsdp = 128 devices at most, so two chips share each sequence.
The bucket, and what a launcher needs of image, project and cluster, are given on the command line.
"""

from ml_collections import ConfigDict

from launch.pods.spec import GkeConfig, PodSpec, spec_dict


def get_config() -> ConfigDict:
    """Four slices."""
    return spec_dict(
        PodSpec(
            name="sdtt-large",
            accelerator="v6e-64",
            slices=4,
            config="experiments/configs/owt_large.py",
            workdir="gs://my-bucket/sdtt/large",
            overrides=("--config.mesh.model=2",),
            zone="us-east5-a",
            spot=True,
            gke=GkeConfig(queue="multislice-queue"),
        )
    )
