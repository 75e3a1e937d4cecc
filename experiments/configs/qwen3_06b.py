"""SDTT by adapters of Qwen3-0.6B as a denoiser, for eight v5e chips or one H100; otherwise as `llada_8b`."""

from ml_collections import ConfigDict

from experiments.configs.llada_8b import of_published
from experiments.settings import config_dict


def get_config() -> ConfigDict:
    return config_dict(of_published("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1"))
