"""About an hour on two cores: the demo's SDTT with a stronger teacher, so a larger effect.

docs/figures/evening.html is a run of `few_calls.py`, which has a noise-coupled student at equal cost.
"""

from ml_collections import ConfigDict

from experiments.configs.demo import adam, demo, muon
from experiments.settings import RunConfig, config_dict
from sdtt_jax.config import changed
from sdtt_jax.networks import CausalConfig


def get_config() -> ConfigDict:
    return config_dict(evening())


def evening() -> RunConfig:
    """The demo's text and network, trained far longer, and distilled further."""
    long = {"optimizer": muon(0.01, 3e-3), "save_every": 500}
    return changed(
        demo(),
        distillers=("sdtt",),
        teacher={"train": long | {"num_steps": 2500}},
        judge={
            "model": CausalConfig(num_layers=4, embed_dim=128, num_heads=4),
            "train": long | {"num_steps": 800},
        },
        distill={
            "num_rounds": 4,
            # With k = 4 a round gains more than with k = 2; the step stops growing at dt = 1/8.
            "num_distill_steps": 4,
            "teacher_num_steps": 16,
            "min_num_steps": 2,
            "num_trajectories": 3,
            "train": {"batch_size": 64, "optimizer": adam(4e-4)},
        },
        evaluation={
            "num_steps": (4, 8, 16, 32),
            "validation_sequences": 2048,
            "gain_sequences": 128,
        },
    )
