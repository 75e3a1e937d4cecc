"""Adapters trained on pairs of prompt and completion, in the teacher and over rounds. Oracle: which positions
every call of the network sees as MASK, those of the prompt being known.
"""

import dataclasses
import itertools
import json

import jax
import numpy as np

import sdtt_jax
from experiments.settings import config_dict, run_config
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.networks.llama import LlamaDenoiser
from sdtt_jax.networks.lora import LoraConfig
from tests.experiments.test_adaptation import STAGES, adapting, base  # noqa: F401 - a fixture

LORA = LoraConfig(rank=2)
PROMPT, ANSWER = "abcde", " the in"
# Each letter is a token and BOS ends the prompt; " the" and " in" are tokens, and EOS is counted.
BEGIN, END = len(PROMPT) + 1, len(PROMPT) + 4


def instructed(folder, base):  # noqa: F811
    pairs = folder / "pairs.jsonl"
    prompts = map("".join, itertools.permutations(PROMPT))
    lines = [json.dumps({"prompt": prompt, "completion": ANSWER}) for prompt in prompts]
    pairs.write_text("\n".join(lines))
    config = run_config(adapting(folder, base))

    def short(stage, **others):
        train = dataclasses.replace(stage.train, num_steps=2, save_every=2)
        return dataclasses.replace(stage, lora=LORA, train=train, **others)

    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, corpus=str(pairs), text_field="prompt>completion", sequences="prompted",
            normalize="none",
        ),
        teacher=short(config.teacher),
        distill=short(config.distill, num_rounds=2),
    )  # fmt: skip


def test_prompts_and_padding_are_seen_and_never_masked(base, tmp_path, monkeypatch):  # noqa: F811
    seen, hidden = [], LlamaDenoiser.hidden

    def watched(self, params, tokens, *more, **inputs):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens)
        return hidden(self, params, tokens, *more, **inputs)

    monkeypatch.setattr(LlamaDenoiser, "hidden", watched)
    with open_run(config_dict(instructed(tmp_path, base)), tmp_path / "run") as run:
        run_stages(run, STAGES)
    jax.effects_barrier()
    monkeypatch.undo()
    measured = run.model(run.workdir.round(2), run.denoiser, stage="distill", round=2)
    assert measured.sequences == run.sequences  # what a run evaluates is the model that it stored
    student = sdtt_jax.load(tmp_path / "run")
    masked = np.concatenate(seen) == student.mask_id
    # The teacher takes two steps; each round takes two, with two calls of the teacher and one of the student.
    assert len(seen) >= 2 + 2 * 2 * 3
    assert masked[:, BEGIN:END].any(axis=0).all()
    assert not masked[:, :BEGIN].any()
    assert not masked[:, END:].any()
    assert (student.facts["round"], student.facts["sequences"]) == (2, "prompted")
