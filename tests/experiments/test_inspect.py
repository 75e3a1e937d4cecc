"""The command that says what a checkpoint was taken for. Oracle: the guide on sequences."""

import json

from sdtt_jax.checkpoints.store import save_params
from sdtt_jax.config import to_mapping
from sdtt_jax.data import DataConfig, TokenizerConfig, prepare
from sdtt_jax.diffusion.schedule import ScheduleConfig
from sdtt_jax.networks import Denoiser, DenoiserConfig
from tests.forking import run_module
from tests.model.runs import random_params


def test_a_model_of_instructions_is_inspected_on_those_of_its_run(tmp_path):
    """Without a flag it was asked for the loss of the Bible, and told to leave the flag out."""
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
    flags = [f"--checkpoint={run / 'teacher'}", "--texts=2", "--num_maskings=1"]
    code, out, err = run_module("experiments.inspect", flags)
    assert code == 0, err
    assert "loss on validation split of the run, 2 texts of 32 tokens" in out
    code, _, err = run_module("experiments.inspect", [*flags, f"--held_out={path}"])
    assert code == 2
    assert "leave the flag out, with a checkpoint in its run's folder" in err
