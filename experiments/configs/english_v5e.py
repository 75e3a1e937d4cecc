"""`english_h100` for a slice of eight v5e chips, 16 sequences on each."""

from ml_collections import ConfigDict

from experiments.configs.english_h100 import english_at_size
from experiments.settings import config_dict


def get_config() -> ConfigDict:
    return config_dict(english_at_size(batch_size=128))
