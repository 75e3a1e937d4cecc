"""Suites on few texts, or on texts with nothing in them. Oracles: what a person would say about them."""

import dataclasses
import functools
import json
import math

import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import cloze, given, likelihood
from sdtt_jax.networks import CausalConfig, CausalNetwork, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser
from tests.worlds import as_causal, as_model, noisy_params

TOKENIZER = train_tokenizer(
    TokenizerConfig(model_type="char", vocab_size=64), ["a quick brown fox"]
)
SIZES = {"length": 12, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
DENOISER = Denoiser(DenoiserConfig(TOKENIZER.vocab_size, cond_dim=8, **SIZES))
CAUSAL = CausalNetwork(CausalConfig(TOKENIZER.vocab_size, **SIZES))


@functools.cache
def judge():
    return as_causal(CAUSAL, noisy_params(CAUSAL, 1), TOKENIZER)


@functools.cache
def denoiser():
    return dataclasses.replace(as_model(DENOISER, noisy_params(DENOISER, 0)), tokenizer=TOKENIZER)


@pytest.fixture
def measure(tmp_path):
    """Runs a suite, and returns its results and what it said."""

    def run(suite, model=None, **settings):
        model, said = model or denoiser(), []
        record = Record(tmp_path / "x.json", model.identity, said.append, replace=True)
        suite(Subject(model, Settings(batch_size=4, **settings), judge()), record)
        json.loads(record.path.read_text(), parse_constant=pytest.fail)
        return record.items, " ".join(said)

    return run


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_bound_of_which_no_draw_masked_anything_is_refused(measure, tmp_path):
    """Seed 0 draws 12 masks of 1e-5 … 0.1: with none of 12 tokens in them, the bound would be 0 nats."""
    text = lines(tmp_path / "text.jsonl", {"text": "a quick brown"})
    said = "likelihood/importance: none of the 1 draws masked a token.* evaluation.validation_sequences"
    with pytest.raises(ConfigError, match=said):
        measure(
            likelihood.suite,
            held_out=text,
            held_out_texts=1,
            estimators=("importance",),
            num_maskings=1,
            seed=0,
        )


def test_one_text_has_no_interval_but_the_error_of_its_masks(measure, tmp_path):
    text = lines(tmp_path / "text.jsonl", {"text": "a quick brown"})
    items, said = measure(
        likelihood.suite,
        held_out=text,
        held_out_texts=1,
        num_maskings=4,
        estimators=("counts",),
    )
    item = items["likelihood/counts"]
    assert item["num_texts"] == 1
    assert item["selection"] == "first"
    assert item["resampled"] == "sequences, as if independent"
    assert item["perplexity_low"] is item["perplexity_high"] is None
    assert item["masking_error"] > 0
    assert item["empty_draws"] == 0
    assert "(no interval)" in said
    assert f"(masking error {item['masking_error'] / math.log(2):.4f})" in said


def test_one_last_word_has_no_interval(measure, tmp_path):
    path = lines(tmp_path / "task.jsonl", {"text": "a quick brown"})
    items, said = measure(cloze.suite, task_file=path, num_maskings=4)
    item = items["lambada/lambada_bound"]
    assert item["perplexity_low"] is item["accuracy_high"] is None
    assert said.count("no interval") == 2
    # Of "a quick" before " brown", between BOS and EOS, a row of 12 tokens has no room for all.
    assert item["contexts_cut"] == 1
    assert "bound: 1 of 1 contexts are too long and lose their beginning" in said


GOOD = {"text": "a fox"}
ENDS = [TOKENIZER.bos_id, TOKENIZER.eos_id]
EMPTY = [{"text": ""}, {"text": "日本"}, {"tokens": []}, {"tokens": ENDS}]


@pytest.mark.parametrize("first_token", ["scored", "given"])
def test_texts_with_nothing_to_score_are_named_counted_and_left_out(measure, tmp_path, first_token):
    """Oracle: the file without them. With its first token given, a text of one token has nothing to score."""
    empty = EMPTY + ([{"text": "a"}] if first_token == "given" else [])
    whole = lines(tmp_path / "whole.jsonl", GOOD, *empty, {"text": "brown"})
    alone = lines(tmp_path / "alone.jsonl", GOOD, {"text": "brown"})
    call = {"model": judge(), "suite": given.suite, "first_token": first_token}
    items, said = measure(texts=whole, **call)
    expected, _ = measure(texts=alone, **call)
    places = ", ".join(str(2 + i) for i in range(len(empty)))
    assert f"{len(empty)} of {len(empty) + 2} texts hold nothing to score and are left out" in said
    assert f"number {places}" in said
    found, wanted = items["judge/texts"], expected["judge/texts"]
    assert found.pop("texts_left_out") == len(empty)
    assert wanted.pop("texts_left_out") == 0
    assert found | {"file": ""} == wanted | {"file": ""}


def test_what_the_vocabulary_cannot_spell_is_counted_and_said(measure, tmp_path):
    """A run of unknown characters is one token: of six and four read ones, two are no text."""
    path = lines(tmp_path / "part.jsonl", {"text": "a fox日本日"}, {"text": "fox語"})
    items, said = measure(given.suite, judge(), texts=path)
    assert items["judge/texts"]["unknown_tokens"] == 2
    assert "texts: 2 of 10 tokens (20.00%) stand for text that the vocabulary lacks" in said
    path = lines(tmp_path / "text.jsonl", {"text": "a fox日本日a fox日本"})
    items, said = measure(likelihood.suite, judge(), held_out=path)
    assert items["likelihood/autoregressive"]["unknown_tokens"] == 2
    assert "held-out text: 2 of 12 tokens (16.67%)" in said


def test_nothing_but_such_texts_is_an_error(measure, tmp_path):
    path = lines(tmp_path / "empty.jsonl", *EMPTY)
    with pytest.raises(ConfigError, match="4 of 4 texts hold nothing to score"):
        measure(given.suite, judge(), texts=path)


def test_a_single_text_is_judged_without_an_interval(measure, tmp_path):
    items, said = measure(given.suite, judge(), texts=lines(tmp_path / "one.jsonl", GOOD))
    item = items["judge/texts"]
    assert item["gen_ppl"] > 1
    assert item["gen_ppl_low"] is item["entropy_high"] is None
    assert "(no interval)" in said


def test_corrected_answers_are_counted_anew(measure, tmp_path):
    """Oracle: with two endings and the other answer, the accuracy is the rest to 1."""
    row, found = {"goal": "a", "sol1": "quick", "sol2": "brown fox"}, []
    for label in (0, 1):
        path = lines(tmp_path / "task.jsonl", row | {"label": label})
        items, _ = measure(cloze.suite, task="piqa", task_file=path, num_maskings=4)
        found.append(items["lambada/piqa_bound"]["accuracy"])
    assert sum(found) == 1
