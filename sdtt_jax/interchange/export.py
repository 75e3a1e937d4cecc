"""Our checkpoints out: as the reference stores them, or as parameters that `sdtt_jax.load` takes."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.configs import to_mapping
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.hub import CONFIG_FILE, TENSORS_FILE
from sdtt_jax.interchange.model import FINAL, Model
from sdtt_jax.interchange.reference import HUB_PREFIX, write_denoiser
from sdtt_jax.interchange.tensors import write_tensors
from sdtt_jax.training.checkpoint import save_params

DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(jnp.bfloat16)}


def export_reference(model: Model, directory: Path) -> list[Path]:
    """Writes `model.safetensors` and `config.json` as the reference's own loader reads them.

    A model that came in this layout goes out under the same names and dtype, bit for bit, with the config
    that it came with.

    Raises:
      ConfigError: the directory is not empty.
    """
    _require_empty(directory)
    dtype = DTYPES[model.facts.get("dtype", "F32")]
    params = jax.tree.map(np.asarray, model.params)
    tensors = write_denoiser(model.config, params, model.facts.get("prefix", HUB_PREFIX))
    config = model.facts.get("published_config") or reference_config(model)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(
        directory / TENSORS_FILE,
        {name: x.astype(dtype, copy=False) for name, x in tensors.items()},
    )
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return [directory / TENSORS_FILE, directory / CONFIG_FILE]


def export_orbax(model: Model, directory: Path) -> list[Path]:
    """Writes the parameters alone, with the tokenizer: `sdtt_jax.load(directory)` takes them.

    Raises:
      ConfigError: the directory is not empty.
    """
    _require_empty(directory)
    tokenizer = model.text_tokenizer
    facts = {name: value for name, value in model.facts.items() if name != "path"}
    save_params(directory / FINAL, model.params, facts | {"model": to_mapping(model.config)})
    (directory / "tokenizer").mkdir(parents=True)
    save_tokenizer(tokenizer, directory / "tokenizer")
    return [directory / FINAL, directory / "tokenizer"]


def reference_config(model: Model) -> dict[str, Any]:
    """What of the reference's nested config describes a network."""
    c = model.config
    return {
        "config": {
            "model": {
                "hidden_size": c.embed_dim,
                "cond_dim": c.cond_dim,
                "length": c.length,
                "n_blocks": c.num_layers,
                "n_heads": c.num_heads,
                "scale_by_sigma": True,
                "dropout": 0.0,
            },
            "parameterization": "subs",
            "time_conditioning": c.time_conditioned,
            "noise": {"type": model.facts["schedule"]["kind"].replace("-", "")},
        },
        "vocab_size": c.vocab_size + 1,
        "mask_index": model.denoiser.mask_id,
    }


def _require_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"--output={directory} is there already and not an empty folder; name another."
        )
