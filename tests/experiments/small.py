"""The smallest config with a teacher and rounds, to be run within a test."""

import dataclasses
from pathlib import Path

from experiments.configs.smoke import smoke
from experiments.settings import config_dict

TEXT = "the quick brown fox jumps over the lazy dog and runs far away from here\n"


def small(folder: Path, **fields):
    """A teacher and two rounds of four steps on a text in `folder`.

    Averages and optimizer go on from round to round, at a constant learning rate.

    Args:
      fields: fields of the training config of every stage.
    """
    corpus = folder / "corpus.txt"
    corpus.write_text(TEXT * 200)
    config = smoke()

    def short(stage, optimizer=None, **others):
        rates = {"warmup_steps": 1} | (optimizer or {})
        values = {
            "save_every": 2,
            "log_every": 1,
            "ema_decay": 0.9,
            "optimizer": dataclasses.replace(stage.train.optimizer, **rates),
        } | fields
        train = dataclasses.replace(stage.train, num_steps=4, batch_size=8, **values)
        return dataclasses.replace(stage, train=train, **others)

    teacher = short(config.teacher)
    growth = {"use_ema_on_growth": True, "reset_optimizer_on_growth": False}
    distill = short(config.distill, {"schedule": "constant"}, **growth)
    data = dataclasses.replace(config.data, corpus=str(corpus), length=16)
    return config_dict(dataclasses.replace(config, data=data, teacher=teacher, distill=distill))
