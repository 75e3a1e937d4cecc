"""Every stage of `english` on two layers of SmolLM2, in two minutes at most: it learns next to nothing."""

from ml_collections import ConfigDict

from experiments.configs.english import english
from experiments.settings import EvaluationConfig, RunConfig, config_dict
from sdtt_jax.config import changed


def get_config() -> ConfigDict:
    return config_dict(english_smoke())


def english_smoke() -> RunConfig:
    """Two layers, a few steps, short texts."""
    short = {
        "num_steps": 4,
        "batch_size": 4,
        "log_every": 1,
        "save_every": 2,
        "optimizer": {"warmup_steps": 1},
    }
    return changed(
        english(),
        data={"length": 8},
        teacher={"init_layers": 2, "attention_annealing": 2, "train": short},
        distill={"train": short},
        evaluation=EvaluationConfig(
            num_texts=4,
            batch_size=4,
            num_steps=(2, 4),
            validation_sequences=8,
            gain_sequences=4,
            gain_trajectories=2,
            show_texts=2,
        ),
    )
