"""The paper's recipe at 12 × 768 on one v5e pod of 256 chips.

Its batch of 128 sequences is split over data * fsdp = 128 devices at most, so two chips share each sequence.
The bucket, and what a launcher needs of image, project and cluster, are given on the command line.
"""

from ml_collections import ConfigDict

from launch.pods.spec import PodSpec, spec_dict


def get_config() -> ConfigDict:
    """One slice."""
    return spec_dict(
        PodSpec(
            name="sdtt-small",
            accelerator="v5litepod-256",
            config="experiments/configs/owt_small.py",
            workdir="gs://my-bucket/sdtt/small",
            overrides=("--config.mesh.model=2",),
            zone="us-west4-a",
        )
    )
