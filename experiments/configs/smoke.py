"""Every stage on the same real text in under a minute: what tests and quick checks run."""

import dataclasses

from ml_collections import ConfigDict

from experiments.configs.demo import demo
from experiments.settings import EvaluationConfig, RunConfig, config_dict
from sdtt_jax.networks import CausalConfig, DenoiserConfig
from sdtt_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    return config_dict(smoke())


def smoke() -> RunConfig:
    """The demo, small enough to learn next to nothing."""
    config = demo()

    def short(train: TrainConfig, num_steps: int) -> TrainConfig:
        return dataclasses.replace(
            train, num_steps=num_steps, batch_size=32, log_every=2, save_every=5
        )

    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, length=32),
        model=DenoiserConfig(num_layers=2, embed_dim=32, num_heads=2, cond_dim=32),
        teacher=dataclasses.replace(config.teacher, train=short(config.teacher.train, 30)),
        judge=dataclasses.replace(
            config.judge,
            model=CausalConfig(num_layers=1, embed_dim=32, num_heads=2),
            train=short(config.judge.train, 20),
        ),
        distillers=("sdtt",),
        distill=dataclasses.replace(
            config.distill, num_rounds=2, train=short(config.distill.train, 12)
        ),
        evaluation=EvaluationConfig(
            num_texts=64,
            batch_size=32,
            num_steps=(4, 8, 16),
            validation_sequences=64,
            gain_sequences=32,
            gain_trajectories=8,
        ),
    )
