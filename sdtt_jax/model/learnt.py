"""What was learnt of a model and is stored beside its checkpoint: the schedule for a number of calls."""

import dataclasses

from sdtt_jax.config import require
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.learnt import SCHEDULES, Learnt
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.model.base import Loaded
from sdtt_jax.paths import read_json


def settled(config: SamplerConfig, model: Loaded) -> SamplerConfig:
    """`config` with the schedule that is stored for its number of calls, where "learnt" names no counts.

    Args:
      config: of a sampler.
      model: whose checkpoint it is.

    Raises:
      ConfigError: nothing was learnt for so many calls.
    """
    _, options = parse_mode(config.mode)
    if not isinstance(options, Learnt) or options.counts:
        return config
    path = None if model.folder is None else model.folder / SCHEDULES
    stored = read_json(path) if path is not None and path.is_file() else {}
    found = stored.get(str(config.num_steps))
    require(
        found is not None,
        f"mode=learnt: no schedule of {config.num_steps} calls is stored beside {model.facts['path']} "
        f"(there are {', '.join(stored) or 'none'}); learn it with experiments.evaluate --suite=schedule.",
    )
    name, _, rest = config.mode.partition(":")
    found = found if isinstance(found, dict) else {"counts": found}
    fields = [f"{option}={value}" for option, value in found.items()]
    mode = f"{name}:" + ",".join(filter(None, (*fields, rest)))
    return dataclasses.replace(config, mode=mode)
