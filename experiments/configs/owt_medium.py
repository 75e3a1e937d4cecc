"""The paper's recipe at the medium size; see owt_small.py."""

from ml_collections import ConfigDict

from experiments.configs.owt_small import owt
from experiments.settings import config_dict


def get_config() -> ConfigDict:
    return config_dict(owt("medium"))
