"""Every stage, with tiny models on the demo's text, in under a minute: for tests and quick checks."""

from ml_collections import ConfigDict

from experiments.configs.demo import demo
from experiments.settings import RunConfig, config_dict
from sdtt_jax.config import changed
from sdtt_jax.networks import CausalConfig, DenoiserConfig


def get_config() -> ConfigDict:
    return config_dict(smoke())


def smoke() -> RunConfig:
    """The demo, small enough to learn next to nothing."""
    short = {"batch_size": 32, "log_every": 2, "save_every": 5}
    return changed(
        demo(),
        data={"length": 32},
        model=DenoiserConfig(num_layers=2, embed_dim=32, num_heads=2, cond_dim=32),
        teacher={"train": short | {"num_steps": 30}},
        judge={
            "model": CausalConfig(num_layers=1, embed_dim=32, num_heads=2),
            "train": short | {"num_steps": 20},
        },
        distillers=("sdtt",),
        distill={"num_rounds": 2, "num_trajectories": 4, "train": short | {"num_steps": 12}},
        evaluation={
            "num_texts": 64,
            "batch_size": 32,
            "num_steps": (4, 8, 16),
            "validation_sequences": 64,
            "gain_sequences": 32,
            "gain_trajectories": 8,
        },
    )
