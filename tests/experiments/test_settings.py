"""Configs as users give them. Oracle: the messages that they should read."""

import dataclasses
import importlib
import math
import re
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from experiments.cli.arguments import IN_FLAGS, clearer, in_words
from experiments.cli.overrides import define_config_file
from experiments.configs.smoke import smoke
from experiments.distillers import DISTILLERS, CoupledStage
from experiments.settings import (
    EvaluationConfig,
    RunConfig,
    TeacherConfig,
    check_overrides,
    config_dict,
    run_config,
)
from launch.pods.spec import PodSpec
from sdtt_jax.config import changed, to_mapping
from sdtt_jax.errors import ConfigError
from tests.experiments.processes import call

CONFIGS = Path(__file__).parent.parent.parent / "experiments" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_file_is_valid_and_survives_the_way_through_a_mapping(name):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    run = run_config(config)
    assert run_config(to_mapping(run)) == run
    assert run_config(config_dict(run)) == run


def test_config_files_are_locked():
    config = config_dict(smoke())
    with pytest.raises(AttributeError, match="num_stepz"):
        config.teacher.train.num_stepz = 3


def _given(monkeypatch, *arguments):
    """The config that absl and ml_collections make of a command line."""
    values = flags.FlagValues()
    monkeypatch.setattr("sys.argv", ["run", *arguments])
    config_flags.DEFINE_config_dict("config", config_dict(smoke()), flag_values=values)
    values(sys.argv)
    return run_config(values["config"].value)


def _leaves(config, path=""):
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def test_every_field_can_be_given_on_the_command_line(monkeypatch):
    """All at once, each with the value that it has; those that are None get a number.

    ml_collections takes neither lists nor None without a type."""
    schedule = {"schedule.kind": "linear", "schedule.sigma_min": 0.25, "schedule.sigma_max": 20.0}
    given = dict(_leaves(smoke())) | schedule
    assert None not in given.values()
    run = _given(monkeypatch, *(f"--config.{name}={value}" for name, value in given.items()))
    assert dict(_leaves(run)) == given


@pytest.mark.parametrize("value", ["(4,8)", "[4,8]", "4,8", " [4, 8,] "])
def test_a_list_may_be_written_as_one_likes(value, monkeypatch):
    run = _given(monkeypatch, f"--config.evaluation.num_steps={value}")
    assert run.evaluation.num_steps == (4, 8)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("[]", "must name at least one"),
        ("", "not ''"),
        ("(4.0,8)", r"num_steps\[0\] must be of type int, not 4.0"),
        ("four,8", "num_steps"),
        ("[4,[8]]", r"num_steps\[1\] must be of type int"),
        ("(True,8)", r"num_steps\[0\] must be of type int, not True"),
        ("(0,4)", "num_steps must be positive"),
    ],
)
def test_a_list_of_something_else_is_named(value, named, monkeypatch):
    with pytest.raises((ConfigError, flags.Error), match=named):
        _given(monkeypatch, f"--config.evaluation.num_steps={value}")


def _with(path, value):
    mapping = to_mapping(smoke())
    *groups, name = path.split(".")
    node = mapping
    for group in groups:
        node = node[group]
    node[name] = value
    return mapping


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("distil", {}, r"config has no field 'distil'; did you mean 'distill'"),
        (
            "distill.num_round",
            3,
            r"config\.distill has no field 'num_round'; did you mean 'num_rounds'",
        ),
        ("model.embed_dim", 33, r"embed_dim=33 must be a multiple of 2 \* num_heads=4"),
        ("judge.model.num_heads", 5, r"embed_dim=32 must be a multiple of 2 \* num_heads=10"),
        ("distill.divergence", "kl", r"config\.distill: divergence='kl' is unknown; .*kl-bwd"),
        ("distill.num_distill_steps", 1, r"num_distill_steps=1 must be at least 2"),
        ("teacher.weighting", "odd", r"config\.teacher: weighting='odd' is unknown"),
        ("teacher.train.batch_size", 0, r"config\.teacher\.train: .*batch_size"),
        ("evaluation.num_steps", [8, 4], r"num_steps=\(8, 4\) must ascend"),
        ("evaluation.gain_trajectories", 7, r"gain_trajectories must be even and positive, not 7"),
        ("evaluation.gain_trajectories", 0, r"gain_trajectories must be even and positive, not 0"),
        ("mesh.data", 0, r"config\.mesh: data must be positive or -1, not 0"),
        ("mesh.data", -2, r"config\.mesh: data must be at least -1, not -2"),
        (
            "distill.train.optimizer.learning_rate",
            math.inf,
            r"learning_rate must be finite, not inf",
        ),
        (
            "distill",
            {
                "num_rounds": 2,
                "reset_optimizer_on_growth": False,
                "train": {
                    "num_steps": 8,
                    "batch_size": 4,
                    "optimizer": {"schedule": "cosine", "warmup_steps": 0},
                },
            },
            r"schedule=cosine ends after one round",
        ),
        ("distillers", ("sdtt, coupled",), r"give several as a tuple: --config\.distillers="),
        ("schedule.kind", "linnear", r"config\.schedule: kind='linnear'"),
        ("data.length", "64", r"config\.data\.length must be of type int, not '64'"),
        ("seed", -1, r"seed=-1 must be a whole number from 0"),
        (
            "teacher",
            {
                "init_from": "smollm2",
                "attention_annealing": 9,
                "train": {"num_steps": 8, "batch_size": 4},
            },
            r"attention_annealing=9 would leave attention half open after .*=8; take 8 at most",
        ),
    ],
)
def test_what_is_wrong_and_where(path, value, message):
    with pytest.raises(ConfigError, match=message):
        run_config(_with(path, value))


def test_a_distiller_that_cannot_honour_the_sequences_is_refused_and_the_others_are_not():
    for kind in ("documents", "padded"):
        config = _with("data.sequences", kind) | {"mmd": {"layer": 1}}
        for name in DISTILLERS:
            config["distillers"] = ("sdtt", name)[name == "sdtt" :]
            if kind in DISTILLERS[name].refused[0]:
                message = f"distillers: '{name}' cannot honour data.sequences='{kind}', because it"
                with pytest.raises(ConfigError, match=message):
                    run_config(config)
            else:
                assert run_config(config).data.sequences == kind
    refusing = {name for name, row in DISTILLERS.items() if row.refused[0]}
    assert refusing == {"coupled", "coupled_idlm", "mixture", "mmd"}


def test_importance_sampling_needs_the_bound_as_objective():
    with pytest.raises(ConfigError, match="importance=True"):
        TeacherConfig(weighting="even", importance=True)


@pytest.mark.parametrize("schedule", [{"kind": "cosine"}, {"kind": "linear", "sigma_min": 0.0}])
def test_importance_sampling_needs_a_schedule_that_has_it(schedule):
    """It used to be told only when the data had been prepared."""
    config = smoke()
    teacher = changed(config.teacher, weighting="nelbo", importance=True)
    assert changed(config, teacher=teacher).teacher.importance
    with pytest.raises(ConfigError, match=r"teacher\.importance=True needs schedule\.kind='log-"):
        changed(config, teacher=teacher, schedule=schedule)
    adopted = changed(teacher, checkpoint="x")
    assert changed(config, teacher=adopted, schedule=schedule).schedule.kind == schedule["kind"]


@pytest.mark.parametrize("name", ["attention_annealing", "init_layers"])
def test_what_is_for_a_model_to_start_from_needs_one(name):
    """It used to be taken and to change nothing."""
    with pytest.raises(
        ConfigError, match=rf"teacher\.{name}=1 is for a model that teacher.init_from"
    ):
        TeacherConfig(**{name: 1})
    for given in ("init_from", "checkpoint"):
        assert getattr(TeacherConfig(**{given: "x", name: 1}), name) == 1


def test_evaluation_must_have_steps():
    """Without calls a noise-coupled student was trained, and then could not be measured."""
    with pytest.raises(ConfigError, match="calls must name at least one number of network calls"):
        CoupledStage(calls=())
    with pytest.raises(ConfigError, match="num_steps"):
        EvaluationConfig(num_steps=())


def test_networks_take_vocabulary_and_length_from_the_data():
    config = smoke()
    denoiser, causal = config.denoiser(vocab_size=29), config.causal(vocab_size=29)
    assert denoiser.vocab_size == causal.vocab_size == 29
    assert denoiser.length == causal.length == config.data.length
    assert denoiser.embed_dim == config.model.embed_dim


@pytest.mark.parametrize("path", ["model.vocab_size", "judge.model.length"])
def test_vocabulary_and_length_are_not_set_twice(path):
    name = path.rpartition(".")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"{name}\.length come from the data; set data.length"):
        run_config(_with(path, 30))


@pytest.mark.parametrize(("kind", "vocab_size"), [("sentencepiece", 64), ("gpt2", 50_257)])
def test_the_vocabulary_before_there_are_data(kind, vocab_size):
    tokenizer = dataclasses.replace(smoke().tokenizer, kind=kind)
    assert dataclasses.replace(smoke(), tokenizer=tokenizer).vocab_size == vocab_size


def test_defaults_of_distillation_are_the_papers_recipe():
    """SDTT, arXiv 2410.21035: 7 rounds of 10,000 steps, Adam 6e-5, batch 128, k = 2, EMA 0.9999."""
    distill = RunConfig().distill
    assert (distill.num_rounds, distill.num_distill_steps, distill.divergence) == (7, 2, "kl-bwd")
    assert (distill.train.num_steps, distill.train.batch_size) == (10_000, 128)
    optimizer = dataclasses.asdict(distill.train.optimizer)
    assert (optimizer["learning_rate"], optimizer["warmup_steps"]) == (6e-5, 500)
    assert distill.train.ema_decay == 0.9999


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.distil.num_rounds=2", "config has no field 'distil'; did you mean 'distill'"),
        ("--config.teacher.train.num_step=2", r"config\.teacher\.train has no field 'num_step'"),
        ("--config.seed.x=2", r"config\.seed has no field 'x'"),
        ("--config=no/such/file.py", "there is no such file"),
        ("--config=/", "--config=/: is no file of Python"),
        ("--config.", "config has no field ''"),
        ("--noconfig.data.deduplicat", "has no field 'deduplicat'; did you mean 'deduplicate'"),
        ("--config.distillers[0]=mmd", "a part of config.distillers; give all of it"),
        ("--config.teacher.train[0].num_steps=1", "a part of config.teacher.train; give all"),
        # ml_collections would set all other fields of the group to their defaults.
        (
            "--config.model={'num_layers': 1}",
            "config.model is a group of fields; give each by itself",
        ),
        ("--config.teacher.train=x.y", r"by itself, --config\.teacher\.train\.FIELD=VALUE"),
    ],
)
def test_overrides_on_the_command_line_are_checked(argument, message):
    with pytest.raises(ConfigError, match=message):
        check_overrides(["run", argument])


def test_a_list_that_is_given_twice_is_refused():
    """ml_collections would join the two, where of all other fields the last value counts."""
    check_overrides(["run", "--config.seed=1", "--config.seed=2", "--config.distillers=sdtt"])
    twice = ["--config.distillers=sdtt", "--config.seed=1", "--config.distillers", "coupled"]
    with pytest.raises(ConfigError, match=r"--config\.distillers is given twice, which would join"):
        check_overrides(["run", *twice])


def test_good_overrides_pass():
    check_overrides(["run", "--config.distill.train.num_steps=3", "--workdir=x", "--stages=data"])
    check_overrides(["run", "--config.data.corpus=[a.b]\n{}", "--noconfig.data.deduplicate"])


def test_a_file_of_flags_that_is_not_there_is_an_error_of_the_flags(tmp_path):
    """It ended every command in a traceback, with status 1, while the module was imported."""
    argv = ["run", f"--flagfile={tmp_path}/none"]
    values = flags.FlagValues()
    define_config_file(values=values, argv=argv)
    with pytest.raises(IN_FLAGS) as caught:
        values(argv)
    assert in_words(caught.value).startswith("Unable to open flagfile: ")
    # On a pod the file is not, and it could hold fields of the spec.
    with pytest.raises(ConfigError, match=r"overrides: '--flagfile=x' must be like"):
        PodSpec(workdir="gs://bucket/x", overrides=("--flagfile=x",))


def test_an_argument_of_a_config_that_takes_none_is_refused(monkeypatch):
    """It used to end in ml_collections' stack. Oracle: the files' own `get_config`."""
    monkeypatch.chdir(CONFIGS.parents[1])
    check_overrides(["--config=experiments/configs/owt_one_round.py:mmd"])
    smoke_with_one = "experiments/configs/smoke.py:foo"
    for given in ([f"--config={smoke_with_one}"], ["--config", smoke_with_one]):
        with pytest.raises(ConfigError, match=r"smoke\.py takes no argument; leave ':foo' out"):
            check_overrides(given)


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # of ml_collections' loader
def test_what_a_config_file_raises_is_one_line_with_its_place(tmp_path):
    """It used to be ml_collections' stack as well, and the place that of Python's or our own line, if any.
    Oracle: the file, by hand."""
    file = tmp_path / "a.py"
    body = "try:\n        return {}[1]\n    except KeyError:\n        return int('x')"
    file.write_text(f"def get_config():\n    {body}\n")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with pytest.raises(flags.Error, match="Traceback") as caught:
        values(["run", f"--config={file}"])
    said = clearer(str(caught.value)).partition("ValueError: ")
    assert said[2] == f"invalid literal for int() with base 10: 'x' ({file}, line 5)"
    assert "Traceback" not in said[0]

    def said_of(body):
        file.write_text(f"from sdtt_jax import *\ndef get_config():\n    {body}\n")
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        with pytest.raises(IN_FLAGS) as caught:
            values(["run", f"--config={file}"])
        return in_words(caught.value)

    place = f"({file}, line 3)"
    assert said_of("return TrainConfig(5, 4, seed=3)").endswith(f"'seed' {place}")
    assert said_of("return TrainConfig(5, batch_size=0)").endswith(f"not 0. {place}")
    assert said_of("TrainConfig(5, 4).keep = 3").endswith(f"to field 'keep' {place}")
    assert said_of("return {}[1]") == f"KeyError: 1 {place}"
    assert said_of("return 12 / 0") == f"ZeroDivisionError: division by zero {place}"
    assert said_of("assert 1 > 120") == f"AssertionError {place}"
    # That of a flag for a field of a dataclass, which `get_config` has returned.
    frozen = in_words(dataclasses.FrozenInstanceError("cannot assign to field 'seed'"))
    assert frozen.startswith("--config: get_config returns a dataclass")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "def get_config():\n    {}\n",
            "--config: get_config returned None; let it return the config",
        ),
        ("x = 1\n", r"--config=.*a\.py has no get_config"),
    ],
)
def test_a_config_file_that_gives_no_config_is_not_a_missing_flag(tmp_path, content, said):
    (tmp_path / "a.py").write_text(content)
    done = call("run", f"--config={tmp_path / 'a.py'}", f"--workdir={tmp_path / 'run'}")
    assert done.status == 2
    assert re.search(f"^Error: {said}", done.stderr, re.MULTILINE), done.stderr


def test_a_config_that_is_not_the_one_of_config_files_is_refused():
    """It used to end in the whole config, of 8,000 characters."""
    with pytest.raises(ConfigError, match="let it return config_dict") as caught:
        run_config(smoke())
    assert len(str(caught.value)) < 200
