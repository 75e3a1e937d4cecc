"""The evening's teacher and distillers at equal cost, at 1 to 16 network calls: 90 minutes on two cores.

Cost is counted in network calls of one sequence, where a backward pass is two. SDTT's four rounds
make 4 × 120 steps × 64 texts × 13 calls (the student's three, the teacher's 1 + 3 trajectories × 3), 399,360.
The coupled student has 10,240 texts, whose noise takes 16 calls each, and 1,220 steps × 64 texts × 3 calls:
398,080; coupled_idlm adds 8 for each of 2,000 steps × 32 texts, 512,000. The other distillers, chosen by
`--config.distillers="('idlm',)"`, take for each text of a step 3 calls (alpha), 20 (mixture), 12 (mmd) or 7
(idlm, which has only 58 % of the cost of the others).
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs.demo import adam
from experiments.configs.evening import evening
from experiments.settings import config_dict
from sdtt_jax.config import changed

CALLS = (1, 2, 4, 8, 16)


def get_config() -> ConfigDict:
    """The evening's run with students that are trained by as many network calls as SDTT's rounds."""

    def others(num_steps: int, learning_rate: float, batch_size: int = 64) -> dict[str, Any]:
        train = {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "save_every": 100,
            "ema_decay": 0.0,
        }
        return {"train": train | {"optimizer": adam(learning_rate)}}

    config = changed(
        evening(),
        distillers=("sdtt", "coupled", "coupled_idlm"),
        alpha=others(2080, 4e-4),
        mixture=others(312, 1.5e-3),
        mmd=others(520, 1e-4),
        # At these temperatures their texts have about the entropy of real text (few_calls.md).
        idlm=others(520, 1e-4) | {"num_calls": 2, "teacher_temperature": 1.1},
        coupled_idlm=others(2000, 2e-4, 32) | {"teacher_temperature": 1.15},
        coupled={
            "num_calls": 16,
            "num_trajectories": 10_240,
            "calls": CALLS,
            "train": {"num_steps": 1220, "save_every": 200},
        },
        evaluation={"num_steps": CALLS},
    )
    return config_dict(config)
