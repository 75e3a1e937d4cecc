"""The paper's size with another distiller: 12 × 768 on OpenWebText, GPT-2's vocabulary.

  python -m experiments.run --config=experiments/configs/owt_one_round.py:mmd --workdir=DIR

The name after the colon is "mixture", "mmd", "idlm" or "alpha"; each is trained with its paper's recipe, for
four network calls where the loss depends on their number. "coupled_idlm" continues from the student of
`owt_coupled.py`, which is trained before it. The teacher is trained as in `owt_small.py`, or given:
--config.teacher.checkpoint=PATH.
"""

from ml_collections import ConfigDict

from experiments.configs.owt_coupled import owt_coupled
from experiments.configs.owt_small import owt
from experiments.distillers import COUPLED, COUPLED_IDLM, ONE_ROUND
from experiments.settings import config_dict
from sdtt_jax.config import changed, choose


def get_config(distiller: str = "mixture") -> ConfigDict:
    """The run with one of `ONE_ROUND`."""
    choose("the config's distiller", distiller, ONE_ROUND)
    evaluation = {"num_steps": (1, 2, 4, 8, 16, 32)}
    if distiller == COUPLED_IDLM:
        both = COUPLED, COUPLED_IDLM
        return config_dict(changed(owt_coupled(), distillers=both, evaluation=evaluation))
    return config_dict(changed(owt("small"), distillers=(distiller,), evaluation=evaluation))
