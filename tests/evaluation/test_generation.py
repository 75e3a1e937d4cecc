"""What texts are continued from. Oracle: the tokens at the start of the rows that a model fills."""

import dataclasses

import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites.generation import Setup, judged_texts, setups, writers
from tests.model.runs import model, run

__all__ = ["model", "run"]
SETTINGS = Settings(num_steps=(2,), prompt_tokens=3, continuation_tokens=4, num_prompts=1)


def test_prompts_stand_behind_bos_for_a_model_that_has_always_seen_it_first(model, tmp_path):
    """But BOS does not come twice, and the texts are measured without it."""
    bos = model.tokenizer.bos_id
    prompts = np.array([[5, 6, 7], [6, 7, 8]], np.int32)
    wrapped = dataclasses.replace(model, facts=model.facts | {"begins_with_bos": True})
    for subject, given, first in (
        (Subject(model, SETTINGS), prompts, [5, 6, 7]),
        (Subject(wrapped, SETTINGS), prompts, [bos, 5, 6, 7]),
        (Subject(wrapped, SETTINGS), np.insert(prompts[:, :2], 0, bos, axis=1), [bos, 5, 6]),
    ):
        setup = Setup("prompted", given, 7, None)
        [writer] = writers(subject, setup)
        assert writer.batches[0]().tokens[0, : len(first)].tolist() == first
        record = Record(tmp_path / f"{len(first)}.json", subject.model.identity)
        texts = judged_texts(subject, record, setup, writer).tokens
        np.testing.assert_array_equal(texts[:, :3], given)
        assert texts.shape == (2, 7)


def test_there_is_room_for_bos_or_an_error(model, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"text": "in the beginning god"}\n')
    wrapped = dataclasses.replace(model, facts=model.facts | {"begins_with_bos": True})
    whole = dataclasses.replace(
        SETTINGS, prompts=str(lines), continuation_tokens=model.config.length - 3
    )
    assert len(setups(Subject(model, whole))) == 1
    with pytest.raises(ConfigError, match="the model's texts have 11 tokens; reduce"):
        setups(Subject(wrapped, whole))
