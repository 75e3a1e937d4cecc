"""A run of instructions with a teacher that has learnt nothing, for tests of the commands."""

import json
from pathlib import Path

from sdtt_jax.checkpoints.store import save_params
from sdtt_jax.config import to_mapping
from sdtt_jax.data import DataConfig, TokenizerConfig, prepare
from sdtt_jax.diffusion.schedule import ScheduleConfig
from sdtt_jax.networks import Denoiser, DenoiserConfig
from tests.model.runs import random_params


def instructed(tmp_path: Path) -> tuple[Path, Path]:
    """The file of pairs, and the run: `teacher` reads 32 tokens."""
    path, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    lines = [json.dumps({"a": "ask " * (i % 5), "b": f"say {i}"}) for i in range(40)]
    path.write_text("\n".join(lines))
    fields = {"text_field": "a>b", "sequences": "prompted", "length": 32}
    chars = TokenizerConfig(model_type="char", vocab_size=64)
    info = prepare(DataConfig(str(path), **fields), chars, run / "data", run / "tokenizer")
    sizes = {"num_layers": 1, "embed_dim": 8, "num_heads": 2, "cond_dim": 8}
    config = DenoiserConfig(vocab_size=info.vocab_size, length=32, **sizes)
    meta = {"kind": "denoiser", "model": to_mapping(config), "sequences": "prompted"}
    meta |= {"schedule": to_mapping(ScheduleConfig()), "stage": "teacher"}
    save_params(run / "teacher/final", random_params(Denoiser(config), 0), meta)
    (run / "config.json").write_text("{}")
    return path, run
