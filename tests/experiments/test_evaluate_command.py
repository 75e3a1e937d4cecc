"""The evaluation command as a person calls it. Oracle: golden values of GPT-2 from the hub's own library."""

import contextlib
import dataclasses
import inspect
import itertools
import json
import os
import re
import types

import numpy as np
import pytest

from experiments.cli import fields
from experiments.evaluate import check_files, check_subject, check_used, evaluate
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject, load_subject
from sdtt_jax.evaluation.suites import SUITES
from sdtt_jax.networks import CausalConfig, CausalNetwork, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser
from tests.experiments.processes import call
from tests.worlds import as_causal, as_model, noisy_params


@pytest.fixture(scope="module")
def tokens_file(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden_texts")
    with np.load(golden / "gpt2_tiny" / "forward.npz") as file:
        values = dict(file)
    for name in ("tokens", "greedy_continuation"):
        lines = [json.dumps({"tokens": row.tolist()}) + "\n" for row in values[name]]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder, values


@pytest.mark.slow
def test_golden_gpt2_through_the_command(golden, tokens_file, tmp_path):
    """Next-token nll and logits with the folder as judge; the greedy continuation with it as model."""
    folder, values = tokens_file
    model = golden / "gpt2_tiny"
    judged = call(
        "evaluate",
        "--suite=judge",
        f"--judge={model}",
        f"--texts={folder / 'tokens.jsonl'}",
        "--first_token=given",
        f"--arrays={tmp_path / 'arrays.npz'}",
        f"--output={tmp_path / 'judge.json'}",
    )
    assert judged.status == 0, judged.stderr
    assert f"judge: {model}" in judged.stderr
    nll = values["nll"]
    with np.load(tmp_path / "arrays.npz") as file:
        np.testing.assert_allclose(file["nll"][:, : nll.shape[1]], nll, rtol=1e-5, atol=1e-5)
        got = file["logits"][:, : nll.shape[1]]
        np.testing.assert_allclose(got, values["logits"][:, :-1], rtol=1e-5, atol=1e-5)
    item = json.loads((tmp_path / "judge.json").read_text())["items"]["judge/texts"]["result"]
    assert item["gen_ppl"] == pytest.approx(np.exp(nll.mean(dtype=np.float64)), rel=1e-5)
    assert item["entropy"] > 0

    start, whole = 4, values["greedy_continuation"].shape[1]
    written = call(
        "evaluate",
        "--suite=generation",
        f"--checkpoint={model}",
        "--judge=none",
        f"--prompts={folder / 'greedy_continuation.jsonl'}",
        f"--prompt_tokens={start}",
        f"--continuation_tokens={whole - start}",
        "--continuations=1",
        "--temperature=0",
        "--first_token=given",
        f"--output={tmp_path / 'greedy.json'}",
    )
    assert written.status == 0, written.stderr
    lines = (
        tmp_path / "greedy.json.parts" / "generation_prompted_autoregressive.jsonl"
    ).read_text()
    tokens = [json.loads(line)["tokens"] for line in lines.splitlines()]
    np.testing.assert_array_equal(tokens, values["greedy_continuation"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--suite=speed", "--checkpoint=x"), "--suite='speed' is unknown"),
        (("--compare=x", "y", "--num_texts=3"), "--compare measures nothing, so --num_texts would"),
        (
            ("--suite=exits,schedule", "--checkpoint=x", "--judge=gpt2"),
            "These suites compare with no other model, so --judge would",
        ),
    ],
)
def test_wrong_flags_are_one_line(given, said):
    finished = call("evaluate", *given)
    assert finished.status == 2
    assert finished.stderr.splitlines()[-1].startswith(f"Error: {said}")


@pytest.mark.parametrize(
    ("suites", "settings", "helper", "said"),
    [
        (
            ["likelihood"],
            {"prompts": "x"},
            None,
            "--prompts is for --suite=generation or budget; add one of them, or leave it out",
        ),
        (["latency"], {"num_prompts": 2}, None, "--num_prompts is for"),
        (["generation"], {"modes": "grid"}, None, "--modes is for --suite=frontier"),
        (["generation"], {"arrays": "x.npz"}, None, "--arrays is for --suite=judge"),
        (["generation"], {"task": "piqa"}, None, "--task is for --suite=lambada"),
        (["generation"], {"continuations": 2}, None, "needs --num_prompts or --prompts; add that"),
        (["budget"], {"prompt_tokens": 8, "num_prompts": 2}, None, None),
        (["likelihood"], {"exit_bound": 0.2}, None, "--exit_bound is for --suite=exits; add that"),
        (["exits"], {"exit_training_text": "x"}, None, "needs --exit_training_steps"),
        (
            ["likelihood"],
            {"num_steps": (3,)},
            None,
            "--num_steps is for --suite=generation, frontier, budget, latency or schedule",
        ),
        (["schedule"], {"guidance": 1.0}, None, "--guidance is for --suite=generation"),
        (["frontier"], {"temperature": 0.5}, None, "or give --temperatures in its place"),
        (["frontier"], {"mode": "confidence", "modes": "grid"}, None, "With --modes, --su"),
        (["frontier"], {"mode": "confidence"}, None, None),
        (
            ["generation"],
            {"prompts": "x", "num_texts": 9},
            None,
            "With --prompts, --suite=generation continues .* so --num_texts would change nothing",
        ),
        (["latency"], {"batch_size": 8}, None, "or give --latency_batches in its place"),
        (["latency"], {"batch_size": 8, "neighbours": "own"}, None, None),
        (["judge"], {"texts": "x", "early_exit": 0.1}, None, "--early_exit is for"),
        (["likelihood"], {"wrap": True}, None, "--wrap is for the text of --held_out"),
        (["generation"], {}, "teacher", r"no decoder \(grid\) uses a second model; leave it out"),
        (
            ["latency"],
            {"mode": "speculative"},
            None,
            "a causal model or a denoiser; name it with --helper",
        ),
        (["likelihood"], {"mode": "speculative"}, "teacher", "as nothing is written"),
        (
            ["frontier"],
            {"mode": "speculative", "modes": "grid"},
            "teacher",
            r"no decoder \(grid\) uses",
        ),
        (["generation", "likelihood"], {"num_prompts": 2, "mode": "speculative"}, "teacher", None),
        (["frontier"], {"modes": "grid speculative", "temperatures": (1.0, 2.0)}, "teacher", None),
        (["budget"], {"prompts": "x", "held_out": "y", "wrap": True}, None, None),
    ],
)
def test_flags_that_would_change_nothing_are_refused(suites, settings, helper, said):
    refused = contextlib.nullcontext() if said is None else pytest.raises(ConfigError, match=said)
    with refused:
        check_used(Settings(**settings), suites, helper)


@pytest.mark.parametrize(
    ("field", "content", "said"),
    [
        ("texts", None, "x.jsonl cannot be read: No such file"),
        ("prompts", None, "x.jsonl cannot be read: No such file"),
        ("prompts", b"\xff", "x.jsonl, line 1, .*UTF-8"),
        ("task_file", None, "x.jsonl does not exist; put the task's"),
        ("task_file", b'{"text": "a b"}\n{}', "x.jsonl, line 2, has no field 'text'"),
        ("exit_training_text", None, "--exit_training_text: .*x.jsonl does not exist"),
        ("neighbours", None, "--neighbours: .*x.jsonl does not exist"),
    ],
)
def test_a_file_that_cannot_be_read_is_found_before_any_model_is_loaded(
    tmp_path, field, content, said
):
    """By what needs no model. Oracle: the sentence with which the suite itself would end."""
    file = tmp_path / "x.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=said):
        check_files(Settings(**{field: str(file)}))


@pytest.mark.parametrize(
    "field", ["texts", "prompts", "task_file", "held_out", "neighbours", "exit_training_text"]
)
def test_a_pipe_is_refused_because_its_beginning_would_be_lost(field, tmp_path):
    """Such as `--texts=<(head -100 all.jsonl)`: the check would take the first texts out of it."""
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match=rf"--{field}=.*x\.jsonl is a pipe or a device"):
        check_files(Settings(**{field: str(tmp_path / "x.jsonl")}))


def test_what_a_list_names_twice_counts_once(monkeypatch):
    given = {field.name: field.default for field in dataclasses.fields(Settings)}
    given |= {"estimators": ["counts", "counts"]}
    given |= {name: ["8", "4", "8"] for name in ("num_steps", "latency_batches")}
    given |= {"temperatures": ["1", "0.5", "1.0"]}
    parsed = {name: types.SimpleNamespace(value=value) for name, value in given.items()}
    monkeypatch.setattr("experiments.cli.fields.flags.FLAGS", parsed)
    settings = fields.from_flags(Settings)
    assert settings.estimators == ("counts",)
    assert (settings.num_steps, settings.temperatures) == ((4, 8), (0.5, 1.0))


def test_guidance_needs_a_suite_that_writes_behind_a_given_text():
    plain, prompted = (types.SimpleNamespace(prompt_end=mark) for mark in (None, 1))
    none, some = (Settings(guidance=2.0, num_prompts=n) for n in (0, 4))
    check_subject(Subject(plain, Settings()), ["generation"])
    check_subject(Subject(plain, some), ["generation", "frontier"])
    check_subject(Subject(prompted, none), ["frontier"])
    for settings, suites in ((none, ["generation"]), (some, ["frontier"])):
        with pytest.raises(ConfigError, match="needs given text: give prompts"):
            check_subject(Subject(plain, settings), suites)


def test_a_first_token_is_given_only_to_a_causal_model():
    """A bound counts every token. Oracle: which of the suites asks a causal model."""
    given, plain = Settings(first_token="given"), types.SimpleNamespace(prompt_end=None)
    check_subject(Subject(plain, Settings()), ["likelihood"])
    check_subject(Subject(plain, given), ["likelihood", "generation"])
    check_subject(Subject(plain, given, baseline=as_causal(None, {})), ["likelihood"])
    with pytest.raises(ConfigError, match="--first_token is for causal models"):
        check_subject(Subject(plain, given), ["likelihood"])


def test_without_a_checkpoint_the_judge_is_measured_and_its_dtype_counts():
    check_used(Settings(judge_compute_dtype="float32"), ["likelihood"], checkpoint=False)
    with pytest.raises(ConfigError, match="give --judge_compute_dtype"):
        check_used(Settings(compute_dtype="float32"), ["likelihood"], checkpoint=False)


@pytest.mark.parametrize("suite", SUITES)
def test_no_suite_is_denied_a_setting_that_it_reads(suite):
    """Oracle: the source of the suite, where a setting is `settings.NAME`; no default is ever refused."""
    check_used(Settings(), [suite])
    suites = {field.name: field.metadata["suites"] for field in dataclasses.fields(Settings)}
    assert {*itertools.chain(*suites.values())} <= {*SUITES}
    source = inspect.getsource(inspect.getmodule(SUITES[suite].run))
    read = {*re.findall(r"settings\.(\w+)", source)} & {*suites}
    assert read
    for called, through in (
        ("held_out(", ["held_out", "held_out_texts", "length", "wrap"]),
        ("subject.length", ["length"]),
        (
            ".sampler(",
            ["mode", "time_grid", "temperature", "cooling", "top_k", "top_p"],
        ),
        ("given=bool(setup.given)", ["guidance"]),
    ):
        read |= {*through} if called in source else {*()}
    assert [name for name in read if suites[name] and suite not in suites[name]] == []


@pytest.mark.parametrize(
    ("judge", "baseline", "lacking"),
    [
        ("own", "own", ("judge", "baseline")),
        ("none", "own", ("baseline",)),
        ("own", "none", ("judge",)),
        ("none", "none", ()),
        ("causal", "causal", ()),
    ],
)
def test_a_judge_that_was_asked_for_and_is_not_there_is_missed_aloud(
    monkeypatch, tmp_path, capsys, judge, baseline, lacking
):
    """A model that belongs to no run: its texts have no perplexity. Oracle: what is asked for and missing."""
    sizes = {"length": 12, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
    denoiser = Denoiser(DenoiserConfig(9, cond_dim=8, **sizes))
    network = CausalNetwork(CausalConfig(9, **sizes))
    model = as_model(denoiser, noisy_params(denoiser, 0))
    loaded = {
        "an/export": dataclasses.replace(model, facts=model.facts | {"path": "an/export"}),
        "causal": as_causal(network, noisy_params(network, 0)),
    }
    monkeypatch.setattr("sdtt_jax.evaluation.subject.load", lambda name, **_: loaded[name])
    subject = load_subject(Settings(), "an/export", judge, baseline, None)
    line = (
        "no " + " and no ".join(lacking) + ": an/export belongs to no run; name what you want with "
    )
    line += " and ".join(f"--{what}" for what in lacking)
    nothing = {"run": lambda *_: None, "check": lambda _: None}
    idle = {name: suite._replace(**nothing) for name, suite in SUITES.items()}
    monkeypatch.setattr("experiments.evaluate.SUITES", idle)
    for suite, said in (("generation", bool(lacking)), ("exits", False)):
        evaluate(subject, [suite], tmp_path / "x.json")
        printed = capsys.readouterr()
        assert (line in printed.out + printed.err) is said
        assert ("belongs to no run" in printed.out + printed.err) is said


@pytest.mark.parametrize(
    ("suite", "settings", "causal", "said"),
    [
        ("likelihood", {}, False, "There is no held-out text"),
        ("likelihood", {"held_out": __file__}, False, "no tokenizer"),
        ("schedule", {}, False, "There is no held-out text"),
        ("exits", {}, False, "There is no held-out text"),
        ("schedule", {}, True, "--suite=schedule is for denoisers"),
        ("exits", {}, True, "--suite=exits is for denoisers"),
        ("frontier", {}, False, "needs a --judge"),
        ("budget", {}, False, "needs a --judge"),
        ("judge", {"texts": __file__}, False, "needs a --judge and --texts"),
        ("judge", {"texts": __file__}, True, "line 1 is not JSON"),
        ("lambada", {"task_file": __file__}, False, "no tokenizer"),
        ("generation", {"mode": "blocks:length=5"}, False, "blocks of 5 do not divide 12 tokens"),
        ("generation", {"mode": "energy"}, False, "mode=energy needs another model"),
        ("generation", {"mode": "learnt", "num_steps": (4,)}, False, "of 4 calls is not stored"),
        ("generation", {"num_prompts": 1, "prompt_tokens": 8}, False, "add up to 58, but"),
        (
            "latency",
            {"mode": "blocks:length=6", "num_steps": (4, 3)},
            False,
            "num_steps=3 must be a multiple of the 2 blocks",
        ),
    ],
)
def test_what_a_later_suite_cannot_measure_is_refused_before_the_first_one_runs(
    monkeypatch, tmp_path, suite, settings, causal, said
):
    """Oracle: a first suite that must not be reached, and a file that must not be written."""
    sizes = {"length": 12, "num_layers": 2, "embed_dim": 8, "num_heads": 2}
    if causal:
        model = as_causal(CausalNetwork(CausalConfig(9, **sizes)), {})
    else:
        denoiser = Denoiser(DenoiserConfig(9, cond_dim=8, **sizes))
        model = as_model(denoiser, noisy_params(denoiser, 0))
    nothing = {"run": lambda *_: pytest.fail("a suite has run"), "check": lambda _: None}
    first = {"first": SUITES["generation"]._replace(**nothing)}
    monkeypatch.setattr("experiments.evaluate.SUITES", first | SUITES)
    subject = Subject(model, Settings(**settings), judge=model if causal else None)
    with pytest.raises(UserError, match=said):
        evaluate(subject, ["first", suite], tmp_path / "x.json")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suite", "settings", "said"),
    [
        ("budget", {}, "needs a --judge"),
        ("budget", {"mode": "learnt"}, "needs a --judge"),
        ("latency", {"mode": "blocks:length=5"}, "blocks of 5 do not divide 12 tokens"),
        ("latency", {"mode": "learnt"}, "the schedule is learnt"),
    ],
)
def test_only_a_schedule_that_is_still_to_be_learnt_is_not_missed(
    monkeypatch, tmp_path, suite, settings, said
):
    """Oracle: of what comes after the suite "schedule", that alone may be missing before it runs."""

    def learn(*_):
        raise UserError("the schedule is learnt")

    schedule = SUITES["schedule"]._replace(run=learn, check=lambda _: None)
    monkeypatch.setattr("experiments.evaluate.SUITES", {**SUITES, "schedule": schedule})
    denoiser = Denoiser(DenoiserConfig(9, 12, num_layers=1, embed_dim=8, num_heads=2, cond_dim=8))
    model = as_model(denoiser, noisy_params(denoiser, 0))
    subject = Subject(model, Settings(**settings))
    with pytest.raises(UserError, match=said):
        evaluate(subject, ["schedule", suite], tmp_path / "x.json")
