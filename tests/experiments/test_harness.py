"""The harness's requests. Oracles: sums by hand over the model's own log-probabilities, and its samples."""

import os
import random
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation import harness
from sdtt_jax.evaluation.cloze import ItemScores
from sdtt_jax.evaluation.harness import (
    Options,
    adapter,
    check_tasks,
    enough_examples,
    generations,
    log_likelihoods,
    resamples,
    rolling_log_likelihoods,
    wanted,
)
from sdtt_jax.ops.categorical import Filters
from tests.experiments.processes import call
from tests.forking import run_module

OPTIONS = Options(num_steps=4, num_maskings=256, max_tokens=6, batch_size=64)


@pytest.fixture(scope="module")
def denoiser(unbroken):
    return sdtt_jax.load(unbroken.root)


@pytest.fixture(scope="module")
def judge(unbroken):
    return sdtt_jax.load(unbroken.root / "judge")


def row(model, prefix, suffix):
    tokenizer = model.text_tokenizer
    ids = [tokenizer.encode_part(part) for part in (prefix, suffix)]
    return np.concatenate([[tokenizer.bos_id], *ids, [tokenizer.eos_id]]), len(ids[0]) + 1


def test_one_token_is_scored_exactly_by_a_denoiser(denoiser):
    tokens, start = row(denoiser, "in th", "e")
    x_t = np.where(np.arange(len(tokens)) == start, denoiser.mask_id, tokens)
    log_probs = np.asarray(denoiser.log_probs(x_t[None]))[0, start]
    [(value, greedy)] = log_likelihoods(denoiser, [("in th", "e")], OPTIONS)
    assert value == pytest.approx(log_probs[tokens[start]], rel=1e-4)
    assert greedy == (log_probs.argmax() == tokens[start])


def test_a_causal_model_is_exact(judge):
    [(value, greedy)] = log_likelihoods(judge, [("in the", " be")], OPTIONS)
    tokens, start = row(judge, "in the", " be")
    tokens = tokens[:-1]
    log_probs = np.asarray(judge.log_probs(tokens[None]))[0]
    places = range(start, len(tokens))
    assert value == pytest.approx(sum(log_probs[i - 1, tokens[i]] for i in places), rel=1e-4)
    assert greedy == all(log_probs[i - 1].argmax() == tokens[i] for i in places)


def test_a_long_text_is_the_sum_of_its_windows(denoiser):
    room = denoiser.config.length - 2
    text = "in the beginning god created the heavens and the earth"
    [whole] = rolling_log_likelihoods(denoiser, [text], OPTIONS)
    parts = rolling_log_likelihoods(denoiser, [text[:room], text[room : 2 * room]], OPTIONS)
    assert len(text) <= 2 * room
    assert text[room - 1] != " " != text[room]
    assert whole == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize("over", [-1, 0, 1, 7, 33])
def test_a_causal_model_reads_a_long_text_in_the_harnesss_windows(judge, over):
    """Oracle: lm_eval's `get_rolling_token_windows(ids, BOS, context, 1)` and the model's own predictions.

    All windows have as many inputs as the network has positions, and predict what is not predicted yet; a
    text of `context` tokens after BOS is one window.
    """
    size = judge.context
    text = ("in the beginning god created the heavens and the earth " * 2)[: size + over]
    ids = [judge.tokenizer.bos_id, *judge.tokenizer.encode(text)]
    predicted, total = 1, 0.0
    while predicted < len(ids):
        end = min(predicted + size, len(ids))
        inputs = np.int32(ids[max(0, end - 1 - size) : end - 1])
        row = np.pad(inputs, (0, size - len(inputs)))[None]
        log_probs = np.asarray(judge.log_probs(row))[0, : len(inputs)]
        new = end - predicted
        total += log_probs[range(len(inputs) - new, len(inputs)), ids[predicted:end]].sum()
        predicted = end
    [value] = rolling_log_likelihoods(judge, [text], OPTIONS)
    assert value == pytest.approx(total, rel=1e-5)


def test_what_a_causal_model_can_read_is_not_cut(judge):
    """As many tokens after BOS as it has positions: the last is not read. Oracle: `score`, and no warning."""
    text = "in the beginning god created the heavens"[: judge.context]
    ids = judge.tokenizer.encode(text)
    assert len(ids) == judge.context
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [(value, _)] = log_likelihoods(judge, [("", text)], OPTIONS)
        [(ending, _)] = log_likelihoods(judge, [(text[:9], text[9:])], OPTIONS)
    assert value == pytest.approx(-float(judge.score(ids[None])[0]) * len(ids), rel=1e-5)
    [(start, _)] = log_likelihoods(judge, [("", text[:9])], OPTIONS)
    assert start + ending == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("kind", ["denoiser", "judge"])
def test_text_goes_on_up_to_its_end(kind, request):
    model = request.getfixturevalue(kind)
    [text] = generations(model, [("in the ", {"max_gen_toks": 8})], OPTIONS)
    assert 0 < len(text) <= 8
    [again] = generations(model, [("in the ", {"max_gen_toks": 8, "until": [text[3]]})], OPTIONS)
    assert again == text[: text.index(text[3])]
    drawn = [
        generations(model, [("in the ", {"temperature": 1.0})], Options(seed=seed, max_tokens=6))
        for seed in range(3)
    ]
    assert len({texts[0] for texts in drawn}) > 1


def test_a_text_of_the_harness_is_read_as_from_a_file(monkeypatch):
    """Line ends and byte-order marks, which no file keeps, would be tokens that training never saw."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    sizes = SimpleNamespace(length=64)
    model = SimpleNamespace(text_tokenizer=tokenizer, prompt_end=None, config=sizes, denoiser=None)
    scored = []
    monkeypatch.setattr(
        harness,
        "_scores",
        lambda _, items, *__: (
            scored.extend(items),
            ItemScores(np.zeros(1), np.ones(1, bool)),
        )[1],
    )
    rolling_log_likelihoods(model, ["\ufeffAnd it was so\r\nabc"], OPTIONS)
    log_likelihoods(model, [("\ufeffAnd it\r\nwas", " so\rabc")], OPTIONS)
    texts = [tokenizer.decode(np.concatenate(item)) for item in scored]
    assert texts == ["And it was so\nabc", "And it\nwas so\nabc"]


TEXT = "and god said let there be light and there was light"
END = "let there be no night"  # as long as the last window of the text


@pytest.mark.parametrize("kind", ["denoiser", "judge"])
def test_a_value_does_not_depend_on_its_place(kind, request):
    """Few maskings, so that other draws would show; equal requests have equal values.

    Pairs are as long as the windows of the texts, and an odd number of maskings fills batches of two.
    """
    model, few = request.getfixturevalue(kind), Options(num_maskings=3, batch_size=2)
    again = ("let there be", " no light")
    pairs = [("in the begin", "ning god "), again, ("and god said let there be", " ligh"), again]
    values = np.array(log_likelihoods(model, pairs, few))
    backwards = np.array(log_likelihoods(model, pairs[::-1], few))[::-1]
    np.testing.assert_allclose(backwards, values, rtol=1e-5)
    np.testing.assert_allclose(log_likelihoods(model, pairs[1:2], few), values[1:2], rtol=1e-5)
    np.testing.assert_array_equal(values[1], values[3])
    rolled = [rolling_log_likelihoods(model, t, few) for t in ([TEXT, END], [END, TEXT])]
    np.testing.assert_allclose(rolled[0], rolled[1][::-1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["denoiser", "judge"])
def test_what_is_drawn_does_not_depend_on_its_place_but_on_its_repetition(kind, request):
    model, drawn = request.getfixturevalue(kind), {"temperature": 1.0, "max_gen_toks": 12}
    first, other, second = generations(
        model, [("in the", drawn), ("let there", drawn), ("in the", drawn)], OPTIONS
    )
    assert first != second
    assert len({*generations(model, [("in the", {"max_gen_toks": 12})] * 2, OPTIONS)}) == 1
    assert generations(model, [("let there", drawn), ("in the", drawn)], OPTIONS) == [other, first]


@pytest.mark.parametrize("kind", ["denoiser", "judge"])
@pytest.mark.parametrize(
    ("context", "settings", "expected"),
    [
        ("in the", {"max_gen_toks": 0}, 0),
        ("in the", {"max_gen_toks": 5}, 5),
        ("in the", {"max_new_tokens": 5}, 5),
        ("in the", {"max_gen_toks": None}, 6),  # what the options say
        ("in the", {"max_gen_toks": 20}, 20),  # more than half of a row of 32, and they fit
        ("in the", {"max_gen_toks": 31 - 6}, 31 - 6),
        ("", {"max_gen_toks": 31}, 31),
    ],
)
def test_as_many_tokens_are_written_as_are_wanted_and_fit(
    kind, context, settings, expected, request
):
    """Rows of 32 characters, BOS among them."""
    [text] = generations(request.getfixturevalue(kind), [(context, settings)], OPTIONS)
    assert len(text) == expected


@pytest.mark.parametrize("kind", ["denoiser", "judge"])
def test_a_context_that_loses_its_beginning_is_told(kind, request):
    model = request.getfixturevalue(kind)
    with pytest.warns(UserWarning, match="contexts that lost their beginning: 1 of 2"):
        texts = generations(model, [(c, {"max_gen_toks": 20}) for c in (TEXT, "in the")], OPTIONS)
    assert [len(text) for text in texts] == [20, 20]


def test_more_than_fits_is_told_once(denoiser):
    requests = [("in the", {"max_gen_toks": 99, "num_beams": 4, "top_p": 0.9})] * 2
    message = "not used: num_beams, top_p; more tokens wanted than fit: 2 of 2"
    with pytest.warns(UserWarning, match=message) as told:
        texts = generations(denoiser, requests, OPTIONS)
    assert len(told) == 1
    assert {len(text) for text in texts} == {denoiser.config.length - 1 - 6}


@pytest.mark.parametrize(
    ("settings", "filters"),
    [
        ({}, {"temperature": 0.0}),
        ({"temperature": 0.0, "do_sample": True}, {"temperature": 0.0}),
        ({"temperature": 0, "do_sample": None}, {"temperature": 0.0}),
        ({"temperature": 0.7, "do_sample": False}, {"temperature": 0.0}),
        ({"temperature": None, "do_sample": True, "top_k": None, "top_p": None}, {}),
        ({"temperature": 0.7, "top_k": 0, "top_p": 0.5}, {"temperature": 0.7, "top_p": 0.5}),
        ({"do_sample": True, "top_k": 3}, {"top_k": 3}),
    ],
)
def test_none_and_zero_differ(settings, filters):
    """Oracle: None is not given, a temperature of 0 is greedy, and drawing without a temperature is at 1."""
    assert wanted(settings).filters == Filters(**filters)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "warm", "do_sample": False}, "temperature"),
        ({"top_p": 0.0, "do_sample": True}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_gen_toks": -1}, "max_gen_toks must be at least 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number"),
        ({"max_gen_toks": 3, "max_new_tokens": 4}, "different numbers of tokens"),
        ({"do_sample": "no"}, "do_sample must be true or false"),
        ({"until": 3}, "until must be a string"),
        ({"until": ["a", None]}, "until must be a string"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        wanted(settings)


def test_the_adapter_speaks_the_harness_protocol(denoiser):
    """Oracle: the protocol as lm_eval.api.model.LM documents it; requests carry their arguments in `args`."""

    class Base:
        def __init__(self):
            self.ready = True

    lm = adapter(Base)(denoiser, OPTIONS)
    assert lm.ready
    assert isinstance(lm, Base)
    pairs = [("in th", "e"), ("and go", "d")]
    asked = [SimpleNamespace(args=pair) for pair in pairs]
    assert lm.loglikelihood(asked) == log_likelihoods(denoiser, pairs, OPTIONS)
    assert lm.loglikelihood([]) == []
    [value] = lm.loglikelihood_rolling([SimpleNamespace(args=("in the",))])
    assert value < 0
    [text] = lm.generate_until([SimpleNamespace(args=("in the", {"until": ["\n"]}))])
    assert isinstance(text, str)


def test_standard_errors_are_drawn_only_where_nothing_is_forked(monkeypatch):
    """Oracle: bootstrap_stderr of lm_eval 0.4.13, which forks unless DISABLE_MULTIPROC is set."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "")
    assert resamples(SimpleNamespace()) == 0
    assert os.environ["DISABLE_MULTIPROC"] == ""
    assert resamples(SimpleNamespace(_bootstrap_internal_no_mp=None)) > 1
    assert os.environ["DISABLE_MULTIPROC"] == "1"


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="num_maskings must be positive"):
        Options(num_maskings=0)


def test_a_renamed_flag_is_answered_by_its_new_name():
    for module, old, new in (
        ("harness", "num_samples=8", "num_maskings"),
        ("evaluate", "precision=float32", "compute_dtype"),
    ):
        done = call(module, f"--{old}")
        assert done.status == 2
        assert f"--{new}" in done.stderr.splitlines()[-1]


def test_a_task_that_is_not_there_is_named(tmp_path):
    (tmp_path / "own.yaml").write_text("task: own")
    check_tasks([str(tmp_path / "own.yaml")], ["piqa"])
    for name, said in (("piqqa", "did you mean 'piqa'?"), ("x", "--include names a folder")):
        with pytest.raises(ConfigError, match=f"^--tasks={name}: .*{re.escape(said)}"):
            check_tasks(["piqa", name], ["piqa", "arc_easy"])


def test_too_many_solved_examples_are_one_sentence_and_other_errors_stay():
    """Oracle: `random.sample`, with which lm_eval 0.4.13 draws them, and the words of its FirstNSampler."""
    few = "Error: number of fewshot samples requested exceeds the 3 that are available."
    with pytest.raises(ConfigError, match="--num_fewshot=4 is more"), enough_examples(4):
        random.sample(range(3), 4)
    with pytest.raises(ConfigError, match="--num_fewshot=4"), enough_examples(4):
        raise AssertionError(few)
    with pytest.raises(ValueError, match="shapes"), enough_examples(4):
        raise ValueError("shapes differ")
    with pytest.raises(ValueError, match="larger"), enough_examples(None):
        random.sample(range(3), 4)


def test_tasks_are_looked_for_before_a_model_is(tmp_path):
    """With a stand-in for the harness, which need not be installed; its names are those of lm_eval 0.4.13."""
    for name, content in {
        "__init__": "def simple_evaluate(**_): pass",
        "api/__init__": "",
        "api/metrics": "",
        "api/model": "class LM: pass",
        "tasks": "class TaskManager:\n    def __init__(self, include_path): self.all_tasks = ['piqa']",
    }.items():
        file = tmp_path / "lm_eval" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    for task, said in (("piqqa", "--tasks=piqqa: the harness"), ("piqa", "There is no checkpoint")):
        arguments = ("--checkpoint=nowhere", f"--tasks={task}")
        done = run_module("experiments.harness", arguments, {"PYTHONPATH": str(tmp_path)})
        assert done.stderr.splitlines()[-1].startswith(f"Error: {said}"), done.stderr


def test_without_the_harness_it_says_what_to_install():
    varied = ("--early_exit=0.05", "--neighbours=own")
    done = call("harness", "--checkpoint=x", "--tasks=piqa", *varied)
    assert done.status == 1
    assert "pip install -e '.[eval]'" in done.stderr


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--limit=0", "--limit must be positive, not 0."),
        ("--num_fewshot=-1", "--num_fewshot must be at least 0, not -1."),
        (
            "--include=/nowhere",
            "--include=/nowhere is not a folder; name one with task files, or leave it out.",
        ),
    ],
)
def test_flags_that_cannot_be_are_refused(flag, said):
    done = call("harness", "--checkpoint=x", "--tasks=piqa", flag)
    assert (done.status, done.stderr.splitlines()[-1]) == (2, f"Error: {said}")
