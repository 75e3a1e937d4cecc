"""What the benchmark measures by default: the paper's small model in float32.

The text for `--suite=data` is the embedded corpus; for the model only sizes, vocabulary and length count.
"""

from ml_collections import ConfigDict

from experiments.configs.owt_small import owt
from experiments.settings import config_dict
from sdtt_jax.config import changed


def get_config() -> ConfigDict:
    """12 × 768, GPT-2's vocabulary and MASK, 1024 tokens, float32."""
    data = {"corpus": "world_english_bible", "validation_fraction": 0.05, "num_shards": 1}
    return config_dict(changed(owt("small"), model={"compute_dtype": "float32"}, data=data))
