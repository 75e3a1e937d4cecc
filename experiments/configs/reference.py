"""The reference code's settings instead of the paper's: 3e-4 after 2500 warmup steps, and its step times."""

from ml_collections import ConfigDict

from experiments.configs.owt_small import owt
from experiments.settings import config_dict
from sdtt_jax.config import changed
from sdtt_jax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
    adam = OptimizerConfig(name="adam", learning_rate=3e-4, warmup_steps=2500)
    distill = {"train": {"optimizer": adam}, "reference_times": True}
    return config_dict(changed(owt("small"), distill=distill))
