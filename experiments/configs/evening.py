"""About seventy minutes on two cores: the demo with a stronger teacher, so a larger effect.

The README's picture and docs/figures/evening.html are a run of this config.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.configs.demo import adam, demo, muon
from experiments.settings import EvaluationConfig, RunConfig, config_dict
from sdtt_jax.networks import CausalConfig
from sdtt_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    return config_dict(evening())


def evening() -> RunConfig:
    """The demo's text and network, trained far longer, and distilled further."""
    config = demo()
    return dataclasses.replace(
        config,
        teacher=dataclasses.replace(
            config.teacher,
            train=TrainConfig(
                num_steps=2500, batch_size=64, optimizer=muon(0.01, 3e-3), save_every=500
            ),
        ),
        judge=dataclasses.replace(
            config.judge,
            model=CausalConfig(num_layers=4, embed_dim=128, num_heads=4),
            train=TrainConfig(
                num_steps=800, batch_size=64, optimizer=muon(0.01, 3e-3), save_every=500
            ),
        ),
        distill=dataclasses.replace(
            config.distill,
            num_rounds=4,
            # With k = 4 a round gains more than with k = 2; the step stops growing at dt = 1/8.
            num_distill_steps=4,
            teacher_num_steps=16,
            min_num_steps=2,
            num_trajectories=3,
            train=TrainConfig(
                num_steps=120, batch_size=64, optimizer=adam(4e-4), log_every=5, save_every=40
            ),
        ),
        evaluation=EvaluationConfig(
            num_texts=512,
            num_steps=(4, 8, 16, 32),
            validation_sequences=2048,
            gain_sequences=128,
            gain_trajectories=64,
        ),
    )
