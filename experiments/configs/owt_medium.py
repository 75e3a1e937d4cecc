"""The paper's recipe at 24 × 1024: seven rounds on OpenWebText with GPT-2's vocabulary."""

from ml_collections import ConfigDict

from experiments.configs.owt_small import owt
from experiments.settings import config_dict


def get_config() -> ConfigDict:
    return config_dict(owt("medium"))
