"""Files in a checkpoint's folder with what was fitted to it: schedules and thresholds of early exits.

Each entry holds the digest of the parameters it was fitted to, and is valid for those only. An entry without
a digest is not checked.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from sdtt_jax.config import instance, require
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.learnt import SCHEDULES, Learnt
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.model.base import Loaded
from sdtt_jax.paths import file_lock, is_remote

DIGEST = "params_digest"


def not_stored(model: Loaded, length: int, what: str) -> str:
    """Why what was fitted to texts of so many tokens is not stored with the checkpoint; empty if it is."""
    folder, whole = model.folder, model.config.length
    if length != whole:
        texts = f"texts of {length} tokens, the model's have {whole}"
        return f"the {what} for {texts}; leave out --length"
    if folder is None or is_remote(folder) or os.access(folder, os.W_OK):
        return ""
    return f"{folder} cannot be written to; copy the checkpoint to a folder of your own"


def store_fitted(model: Loaded, file: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Adds JSON-ready entries to a file in the folder of their checkpoint, and returns its path."""
    assert model.folder is not None
    path = model.folder / file
    digest = {DIGEST: model.params_digest}
    ours = {name: {**entry, **digest} for name, entry in entries.items()}
    with file_lock(path):
        write_json(path, (read_json(path) if path.is_file() else {}) | ours)
    return str(path)


def read_fitted(model: Loaded, file: str, name: str, what: str, remedy: str) -> Any:
    """An entry of a file in a checkpoint's folder, without its digest.

    `what` and `remedy` are for the error about a missing entry, or one fitted to other parameters.
    """
    path = None if model.folder is None else model.folder / file
    stored = read_json(path) if path is not None and path.is_file() else {}
    found = stored.get(name)
    require(
        found is not None,
        f"{what} is not stored with {model.facts['path']} (there are {', '.join(stored) or 'none'}); "
        f"{remedy}.",
    )
    if not isinstance(found, dict) or DIGEST not in found:
        return found
    require(
        found[DIGEST] == model.params_digest,
        f"{what}, stored in {path}, was fitted to other parameters than {model.facts['path']} has; {remedy}.",
    )
    return {field: value for field, value in found.items() if field != DIGEST}


def with_stored_schedule(config: SamplerConfig, model: Loaded) -> SamplerConfig:
    """Fills the stored schedule into `config` if its mode is "learnt" without counts.

    Raises:
      ConfigError: no schedule is stored for that number of calls, or it was fitted to other parameters; or
        `config` is not a `SamplerConfig`.
    """
    instance(SamplerConfig, config=config)
    mode = parse_mode(config.mode)
    if not isinstance(mode.options, Learnt) or mode.options.counts:
        return config
    found = read_fitted(
        model,
        SCHEDULES,
        str(config.num_steps),
        f"mode=learnt: a schedule of {config.num_steps} calls",
        "learn it with experiments.evaluate --suite=schedule",
    )
    found = found if isinstance(found, dict) else {"counts": found}
    return dataclasses.replace(config, mode=mode.with_options(found))
