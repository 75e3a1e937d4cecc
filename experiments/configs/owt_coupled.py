"""A noise-coupled student at the paper's size: 12 × 768 on OpenWebText, GPT-2's vocabulary.

At 50,257 tokens a position's noise is drawn on two levels, 393 numbers for the blocks of tokens and 128 for
the tokens of a block. The trajectories of the teacher's 128 calls are made once: 65,536 of them are 8.4
million calls of one sequence, where the 10,000 steps of training are 3.8 million (a backward pass counted as
two). The teacher is trained as in `owt_small.py`, or given: --config.teacher.checkpoint=PATH.
"""

from ml_collections import ConfigDict

from experiments.configs.owt_small import owt
from experiments.distillers import COUPLED
from experiments.settings import RunConfig, config_dict
from sdtt_jax.config import changed
from sdtt_jax.networks.config import NoiseConfig


def get_config() -> ConfigDict:
    return config_dict(owt_coupled())


def owt_coupled() -> RunConfig:
    """The paper's run with a noise-coupled student in place of SDTT's rounds."""
    return changed(
        owt("small"),
        distillers=(COUPLED,),
        coupled={
            "num_calls": 128,
            "noise": NoiseConfig(kind="two-level", hidden_dim=1024),
            "calls": (1, 2, 4, 8, 16, 32),
        },
    )
