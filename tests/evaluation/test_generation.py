"""What texts are continued from. Oracle: the tokens at the start of the rows that a model fills."""

import dataclasses

import numpy as np
import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation import continuations, harness
from sdtt_jax.evaluation.judge import in_judge_tokens
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import generation
from sdtt_jax.evaluation.suites.generation import (
    Setup,
    Writer,
    judged_texts,
    setups,
    unprompted,
    writers,
)
from sdtt_jax.formats import read_json
from sdtt_jax.model.batches import Written
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import CausalConfig, CausalNetwork
from tests.model.runs import model, random_params, run
from tests.spaces import KINDS, spacing
from tests.worlds import as_causal

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


class BegunError(Exception):
    """Generation has begun, from the rows that it holds."""


def begin(*arguments):
    raise BegunError(np.asarray(arguments[2]))


def begun(write):
    """The rows from which a function begins to write."""
    with pytest.raises(BegunError) as error:
        write()
    return error.value.args[0]


@pytest.mark.parametrize(
    "facts",
    [{}, {"begins_with_bos": True}, {"sequences": "padded"}, {"sequences": "prompted"}],
    ids=["packed", "wrapped", "padded", "instructed"],
)
def test_all_suites_begin_where_sampling_begins(model, tmp_path, monkeypatch, facts):
    """Oracle: `Model.prior` of the same text. Nothing is written: generation stops where it begins."""
    model = dataclasses.replace(model, facts=model.facts | facts)
    bare, prompted = np.asarray(model.prior(1)), np.asarray(model.prior(1, "in t"))
    given = prompted[prompted != model.mask_id]
    monkeypatch.setattr(Model, "batches", begin)
    monkeypatch.setattr(Model, "denoise", begin)
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"text": "in the beginning god"}\n')
    whole = Settings(num_steps=(2,), num_texts=1)
    some = dataclasses.replace(
        whole,
        prompts=str(lines),
        prompt_tokens=4,
        continuation_tokens=prompted.size - given.size,
        continuations=1,
    )
    [without], [behind] = setups(Subject(model, whole)), setups(Subject(model, some))
    for settings, setup, expected in (
        (whole, without, bare),
        (whole, unprompted(Subject(model, whole), "frontier", None), bare),
        (some, behind, prompted),
    ):
        found = begun(lambda: writers(Subject(model, settings), setup))  # noqa: B023 - called here
        np.testing.assert_array_equal(found, expected)
    [row] = begun(
        lambda: harness.generations(model, [("in t", {"max_gen_toks": 3})], harness.Options())
    )
    # All others are asked behind BOS, as the reference asks published models.
    instructed = facts.get("sequences") == "prompted"
    text = prompted[0, len(given) - 4 : len(given)]
    asked = given if instructed else [model.tokenizer.bos_id, *text]
    assert row[row != model.mask_id].tolist() == list(asked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sequences", "text"), [("packed", " tin"), ("prompted", "tin")])
def test_a_text_that_goes_on_keeps_its_space(model, monkeypatch, kind, sequences, text):
    """The harness appends it to its context. Behind a token that ends a prompt a text begins."""
    tokenizer = spacing(kind)
    tin = tokenizer.encode("tin")
    monkeypatch.setattr(harness, "_continued", lambda *_: tin)
    facts = model.facts | ({"sequences": sequences} if sequences == "prompted" else {})
    spaced = dataclasses.replace(model, tokenizer=tokenizer, facts=facts)
    requests = [("the", {"max_gen_toks": 2}), ("", {"max_gen_toks": 2})]
    assert harness.generations(spaced, requests, harness.Options()) == [text, "tin"]


def test_a_model_of_instructions_is_asked_for_completions_alone(model):
    """Oracle: the layout of training, prompt BOS completion EOS; a causal model also has BOS first."""
    model = dataclasses.replace(model, facts=model.facts | {"sequences": "prompted"})
    bos, eos = model.tokenizer.bos_id, model.tokenizer.eos_id
    config = CausalConfig(
        model.config.vocab_size, length=12, num_layers=1, embed_dim=8, num_heads=2
    )
    network = CausalNetwork(config)
    causal = as_causal(network, random_params(network, 0), model.tokenizer)
    causal = dataclasses.replace(causal, facts=causal.facts | {"sequences": "prompted"})
    item = continuations.Continuation(np.array([5, 6]), np.array([7]))
    for each, row in ((model, [5, 6, bos, 7, eos]), (causal, [bos, 5, 6, bos, 7])):
        [rows] = continuations.lay_out([item], continuations.layout_of(each), 40)
        assert rows.tokens[0, : len(row)].tolist() == row
        assert row[rows.start[0] : rows.stop[0]] == [7]
    assert continuations.layout_of(causal).opening(item.prefix).tolist() == [bos, 5, 6, bos]
    # Neither a real sequence's prompt nor its BOS counts for entropy and perplexity.
    real = np.array([[5, 6, 7, bos, 8, 9, eos], [5, bos, 8, 8, 8, 8, eos]], np.int32)
    setup = Setup("unconditional", np.full((1, 1), bos, np.int32), 7, real)
    [writer, *_] = writers(Subject(model, dataclasses.replace(SETTINGS, num_texts=1)), setup)
    reading = in_judge_tokens(causal, list(real), model.tokenizer, "cut", writer.given)
    assert reading.starts.tolist() == [4, 2]
    assert [text.tolist() for text in reading.written] == [[8, 9, eos], [8, 8, 8, 8, eos]]
    with pytest.raises(ConfigError, match="give them with --prompts instead of --num_prompts"):
        setups(Subject(model, SETTINGS))


def causal_beside(model, tokenizer):
    """A causal model with random parameters and a tokenizer."""
    sizes = {"length": model.config.length, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
    network = CausalNetwork(CausalConfig(tokenizer.vocab_size, **sizes))
    return as_causal(network, random_params(network, 0), tokenizer)


def test_a_baseline_with_other_tokens_continues_no_prompt(model):
    """It would take the ids for other texts; without a prompt, it writes."""
    other = train_tokenizer(TokenizerConfig(model_type="char", vocab_size=64), ["xyz"])
    for tokenizer, prompted in ((model.tokenizer, True), (other, False)):
        subject = Subject(model, SETTINGS, baseline=causal_beside(model, tokenizer))
        for length, written in ((3, prompted), (0, True)):
            setup = Setup("prompted", np.zeros((2, length), np.int32), 7, None)
            names = [writer.name for writer in writers(subject, setup)]
            assert ("autoregressive" in names) is written


def test_earlier_continuations_by_such_a_baseline_leave_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "_item", lambda *_: None)
    other = train_tokenizer(TokenizerConfig(model_type="char", vocab_size=64), ["xyz"])
    lines, said = tmp_path / "prompts.jsonl", []
    lines.write_text('{"text": "in the beginning god"}\n')
    settings = dataclasses.replace(SETTINGS, prompts=str(lines), continuations=1)
    record = Record(tmp_path / "x.json", model.identity, said.append)
    record.item("generation/prompted/autoregressive", {}, dict)
    subject = Subject(model, settings, baseline=causal_beside(model, other))
    generation.suite(subject, record)
    assert "has another tokenizer" in said[-1]
    assert not Record(record.path, model.identity).items


@pytest.mark.parametrize("kind", ["padded", "prompted"])
def test_the_padding_of_real_text_is_not_measured(model, tmp_path, kind):
    """Neither is what models write there. Oracle: the texts before their padding, written by hand."""
    model = dataclasses.replace(model, facts=model.facts | {"sequences": kind})
    bos, eos = model.tokenizer.bos_id, model.tokenizer.eos_id
    start = [bos] if kind == "prompted" else []
    texts = [[*start, 5, 6, eos], [*start, 7, 8, 9, 5, eos]]
    real = np.array([text + [eos] * (7 - len(text)) for text in texts], np.int32)
    subject = Subject(model, SETTINGS, judge=causal_beside(model, model.tokenizer))
    setup = Setup("unconditional", np.zeros((2, 0), np.int32), 7, real)
    writer = next(writer for writer in writers(subject, setup) if writer.name == "real_text")
    record = Record(tmp_path / "x.json", model.identity)
    judged = judged_texts(subject, record, setup, writer)
    assert [row.tolist() for row in judged.tokens] == texts
    assert [text.tolist() for text in judged.reading.written] == [
        text[len(start) :] for text in texts
    ]
    assert judged.scores.scored.tolist() == [len(text) - len(start) for text in texts]
    rows = np.array([text + [8] * (7 - len(text)) for text in texts], np.int32)
    facts = {"kind": "diffusion"}
    writer = Writer("teacher", model, [lambda: Written(rows, np.ones(2))], facts, {}, len(start))
    judged = judged_texts(subject, record, setup, writer)
    assert [text.tolist() for text in judged.reading.written] == [
        text[len(start) :] for text in texts
    ]
    assert judged.scores.scored.tolist() == [len(text) - len(start) for text in texts]
    assert generation.judging(subject)["ends"] == "cut"  # so that earlier figures are not kept


@pytest.mark.parametrize("asked", [5, 0], ids=["more", "all"])
def test_fewer_prompts_than_asked_for_are_said(model, tmp_path, monkeypatch, asked):
    """Oracle: the file, where two of five texts are too short; 0 asks for all of it."""
    monkeypatch.setattr(generation, "_item", lambda *_: None)
    lines, said = tmp_path / "prompts.jsonl", []
    lines.write_text('{"text": "in the beginning god"}\n' * 3 + '{"text": "in"}\n' * 2)
    settings = dataclasses.replace(
        SETTINGS, prompts=str(lines), num_prompts=asked, num_texts=1, continuations=1
    )
    record = Record(tmp_path / "x.json", model.identity, said.append)
    generation.suite(Subject(model, settings), record)
    assert "3 prompts instead of 5" in said[0]
    assert generation.setups(Subject(model, settings))[0].real.shape == (3, 7)


def test_texts_without_a_prompt_are_not_guided(model):
    """Two network calls for each one only where there is a prompt, in one call of the suite."""
    settings = dataclasses.replace(SETTINGS, guidance=2.0, mode="first-hitting")
    for prompt, calls in (([], 2), ([5, 6], 4)):
        setup = Setup("unconditional", np.tile(np.array(prompt, np.int32), (2, 1)), 7, None)
        (writer,) = writers(Subject(model, settings), setup)
        assert writer.batches[0]().nfe.tolist() == [calls, calls]


def test_a_baseline_begins_with_bos_where_it_has_no_prompt(model):
    """Whether the judge reads BOS is another matter; a prompt is continued without it, if so asked."""
    causal = causal_beside(model, model.tokenizer)
    settings = dataclasses.replace(SETTINGS, first_token="given")
    for prompt in ([], [5]):
        setup = Setup("unconditional", np.tile(np.array(prompt, np.int32), (2, 1)), 7, None)
        writer = writers(Subject(model, settings, baseline=causal), setup)[-1]
        assert writer.name == "autoregressive"
        tokens = writer.batches[0]().tokens
        assert tokens[0, : len(prompt) or 1].tolist() == (prompt or [model.tokenizer.bos_id])
    bare = dataclasses.replace(causal, tokenizer=None)
    setup = Setup("unconditional", np.zeros((2, 0), np.int32), 7, None)
    with pytest.raises(ConfigError, match="out such a baseline with --baseline=none"):
        writers(Subject(model, settings, baseline=bare), setup)


@pytest.mark.parametrize(("count", "said"), [(1, "1 unknown token,"), (2, "2 unknown tokens,")])
def test_a_log_line_counts_in_english(count, said):
    assert said in generation._said("steps_0004", {"unknown_tokens": count, "entropy": 2.5})


@pytest.mark.parametrize(("bound", "out"), [(1e-4, True), (1e4, False)])
def test_a_result_says_that_the_steps_ran_out(model, tmp_path, bound, out):
    """Of 12 masked tokens a call reveals one under the one bound, and all under the other."""
    lines = []
    settings = Settings(
        num_steps=(2,), num_texts=2, batch_size=2, mode=f"entropy-bounded:bound={bound}"
    )
    subject, path = Subject(model, settings), tmp_path / "results.json"
    generation.suite(subject, Record(path, model.identity, log=lines.append))
    (item,) = read_json(path)["items"].values()
    assert item["result"]["nfe"] == (3 if out else 1)
    assert item["result"].get("ran_out", False) == out
    assert any("too few steps: the most probable" in line for line in lines) == out
