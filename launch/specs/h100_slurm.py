"""The paper's recipe at 12 × 768 on two nodes of eight H100s, with SLURM and a shared file system."""

from ml_collections import ConfigDict

from launch.pods.spec import PodSpec, SlurmConfig, spec_dict


def get_config() -> ConfigDict:
    """Two nodes."""
    return spec_dict(
        PodSpec(
            name="sdtt-small",
            accelerator="h100",
            slices=2,
            config="experiments/configs/owt_small.py",
            workdir="/shared/runs/sdtt-small",
            slurm=SlurmConfig(
                partition="gpu",
                checkout="/shared/sdtt_jax",
                python="/shared/sdtt_jax/.venv/bin/python",
            ),
        )
    )
