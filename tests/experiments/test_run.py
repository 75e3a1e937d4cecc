"""The runner. Oracles: its messages, its files (DESIGN), and an unbroken run of the same config."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from experiments.configs.smoke import smoke
from experiments.settings import config_dict
from experiments.stages.runner import STAGE_NAMES, open_run, run_stages
from experiments.stages.training import check_found_elsewhere
from experiments.stages.workdir import final
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import load_params
from sdtt_jax.config import changed
from sdtt_jax.distillation.rounds import round_dt
from sdtt_jax.errors import CheckpointError, ConfigError, DataError, UserError
from sdtt_jax.parallel.mesh import AXES
from sdtt_jax.parallel.placement import unbox
from tests.experiments.processes import SMOKE, call
from tests.forking import start_module

TEXT = "the quick brown fox jumps over the lazy dog and runs far away from here\n"


def _config(corpus, **fields):
    return config_dict(changed(smoke(), data={"corpus": str(corpus)}, **fields))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT * 200)
    return path


def _corpus_error(tmp_path, content):
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_bytes(content)
    with (
        pytest.raises((ConfigError, DataError)) as error,
        open_run(_config(corpus), tmp_path / "run") as run,
    ):
        run_stages(run, ["data"])
    message = str(error.value)
    assert str(corpus) in message
    assert "\n" not in message
    assert not (tmp_path / "run" / "data").exists(), "nothing half-made is left"
    return message


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "does not exist|no such|not found"), (b"", "empty"), (b"\xff\xfe\x00text", "UTF-8")],
    ids=["missing", "empty", "not UTF-8"],
)
def test_a_corpus_that_cannot_be_read_is_one_line(tmp_path, content, named):
    assert re.search(named, _corpus_error(tmp_path, content), re.IGNORECASE)


def test_a_process_says_it_in_one_line_and_fails(tmp_path):
    corpus = tmp_path / "latin.txt"
    corpus.write_bytes("für immer".encode("latin-1") * 100)
    finished = call("run", SMOKE, f"--config.data.corpus={corpus}", f"--workdir={tmp_path / 'run'}")
    assert finished.status == 1
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("Error: ")
    assert str(corpus) in lines[0]


def test_a_stage_names_the_one_that_it_needs(tmp_path, corpus):
    with (
        pytest.raises(UserError, match=r"Stage evaluate needs .*judge/final"),
        open_run(_config(corpus), tmp_path / "run") as run,
    ):
        run_stages(run, ["data", "evaluate"])


@pytest.mark.parametrize(
    ("stages", "needed", "rank"),
    [
        (["data", "distill"], "distill needs .*teacher", 0),
        (["data", "distill"], "distill needs .*teacher", 2),
        (["data", "evaluate"], "evaluate needs .*judge", 0),
    ],
)
def test_a_stage_that_cannot_start_is_refused_before_the_others_work(
    tmp_path, corpus, stages, needed, rank
):
    """Oracle: the directory, in which the stage before it has prepared nothing."""
    config = _config(corpus)
    config.distill.lora.rank = rank  # adapters too start from the teacher
    with open_run(config, tmp_path / "run") as run:
        with pytest.raises(UserError, match=needed + "/final"):
            run_stages(run, stages)
        assert not run.workdir.data.exists()


def test_a_directory_is_locked_while_it_is_open(tmp_path, corpus):
    with open_run(_config(corpus), tmp_path / "run"), pytest.raises(UserError, match="in use"):
        open_run(_config(corpus), tmp_path / "run").__enter__()


def test_another_config_leaves_the_run_as_it_was(tmp_path, corpus):
    with open_run(_config(corpus), tmp_path / "run") as run:
        before = run.workdir.config.read_bytes()
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        open_run(_config(corpus, seed=1), tmp_path / "run").__enter__()
    assert run.workdir.config.read_bytes() == before


def test_a_checkpoint_of_another_model_is_named(tmp_path, corpus):
    with open_run(_config(corpus), tmp_path / "run") as run:
        shapes = unbox(jax.eval_shape(run.denoiser.init, jax.random.key(0)))
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        run.deliver(run.workdir.teacher, run.denoiser, params, stage="teacher")
        run.delivered(run.workdir.teacher, run.denoiser, "distill")
        with pytest.raises(CheckpointError, match="teacher/final"):
            run.delivered(run.workdir.teacher, run.judge, "evaluate")
        deeper = dataclasses.replace(run.config.model, num_layers=3)
        other = dataclasses.replace(run, config=dataclasses.replace(run.config, model=deeper))
        with pytest.raises(CheckpointError, match="teacher/final"):
            other.delivered(run.workdir.teacher, other.denoiser, "distill")


ENTRY = {"gen_ppl", "gen_ppl_low", "gen_ppl_high", "entropy", "nfe"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestWholeRun:
    """The smoke config, every stage, in processes of their own."""

    def test_files(self, unbroken):
        root = unbroken.root
        for name in (
            "config.json",
            "metrics.jsonl",
            "results.json",
            "samples.json",
            "report.html",
            "data",
            "tokenizer",
            "teacher/final",
            "judge/final",
            "rounds/01/final",
            "rounds/02/final",
        ):
            assert (root / name).exists(), name
        said = [line for line in unbroken.finished.stdout.splitlines() if not line.startswith(" ")]
        assert [line.split(":")[0] for line in said] == list(STAGE_NAMES)
        assert "Traceback" not in unbroken.finished.stderr
        *_, headline, page = unbroken.finished.stdout.splitlines()
        assert page.strip() == str(root / "report.html")
        assert f"<h1>{headline.strip()}</h1>" in (root / "report.html").read_text("utf-8")

    def test_results(self, unbroken):
        results = json.loads((unbroken.root / "results.json").read_text())
        config = smoke()
        steps = {str(n) for n in config.evaluation.num_steps}
        tables = [results["teacher"]["steps"], *(r["steps"] for r in results["rounds"])]
        for table in tables:
            assert set(table) == steps
            for n, entry in table.items():
                assert set(entry) >= ENTRY
                assert entry["gen_ppl_low"] <= entry["gen_ppl"] <= entry["gen_ppl_high"]
                assert 0 < entry["nfe"] <= int(n) + 1
                assert entry["entropy"] > 0
        assert results["teacher"]["val_ppl"] > 1
        assert [r["round"] for r in results["rounds"]] == [1, 2]
        assert [r["dt"] for r in results["rounds"]] == [round_dt(config.distill, n) for n in (1, 2)]
        for record in results["rounds"]:
            assert set(record["paired"]) == steps
            for pair in record["paired"].values():
                assert pair["low"] <= pair["log_ratio"] <= pair["high"]
            assert record["num_distill_steps"] == config.distill.num_distill_steps
            assert record["divergence"] == config.distill.divergence
            assert record["teacher_divergence"] > 0
            excess = record["teacher_divergence"] - record["floor"]
            won = record["teacher_divergence"] - record["student_divergence"]
            assert record["gain_share"] == pytest.approx(won / excess)
            assert re.fullmatch(r"[0-9a-f]{64}", record["params_digest"])
        assert set(results["baseline_ar"]) >= {"gen_ppl", "entropy", "val_ppl", "nfe"}
        assert set(results["data"]) >= {"gen_ppl", "entropy", "count"}
        assert results["num_texts"] == config.evaluation.num_texts
        assert set(results["timing"]) >= set(STAGE_NAMES) - {"report"}

    def test_digests_are_those_of_the_delivered_parameters(self, unbroken):
        results = json.loads((unbroken.root / "results.json").read_text())
        for record in results["rounds"]:
            params, _ = load_params(unbroken.root / "rounds" / f"{record['round']:02d}" / "final")
            assert params_digest(params) == record["params_digest"]

    def test_metrics(self, unbroken):
        lines = [json.loads(x) for x in (unbroken.root / "metrics.jsonl").read_text().splitlines()]
        stages = [(x["stage"], x["round"]) for x in lines]
        assert set(stages) == {("teacher", 0), ("judge", 0), ("distill", 1), ("distill", 2)}
        for line in lines:
            assert set(line) >= {"step", "loss", "grad_norm", "lr", "tokens_per_second", "seconds"}
            assert np.isfinite(line["loss"])
        last = {key: line["step"] for key, line in zip(stages, lines, strict=True)}
        config = smoke()
        assert last == {
            ("teacher", 0): config.teacher.train.num_steps,
            ("judge", 0): config.judge.train.num_steps,
            ("distill", 1): config.distill.train.num_steps,
            ("distill", 2): config.distill.train.num_steps,
        }

    def test_samples(self, unbroken):
        samples = json.loads((unbroken.root / "samples.json").read_text())
        length = smoke().data.length
        assert samples["length"] == length
        assert set(samples["texts"]) == {"teacher", "student", "data", "autoregressive"}
        for name in ("teacher", "student"):
            assert set(samples["texts"][name]) == {str(n) for n in samples["steps"]}
        frames = samples["animation"]["frames"]
        assert all(len(frame) == length for frame in frames)
        assert frames[0] == [None] * length
        assert None not in frames[-1]

    def test_a_second_call_finds_everything_finished(self, unbroken):
        before = {
            name: (unbroken.root / name).read_bytes() for name in ("results.json", "metrics.jsonl")
        }
        again = call("run", SMOKE, f"--workdir={unbroken.root}")
        said = [f"{stage}: finished before" for stage in STAGE_NAMES[1:]]
        said += unbroken.finished.stdout.splitlines()[-2:]  # the report's headline and place
        assert again.stdout.splitlines()[2:] == said, again.stderr
        for name, content in before.items():
            assert (unbroken.root / name).read_bytes() == content

    def test_samples_on_the_command_line(self, unbroken, tmp_path):
        arguments = (
            f"--checkpoint={unbroken.root}",
            "--num_steps=4",
            "--num_samples=3",
            "--prompt=in the beginning",
            f"--output={tmp_path / 'texts.jsonl'}",
        )
        finished = call("sample", *arguments)
        assert finished.status == 0, finished.stderr
        records = [json.loads(x) for x in (tmp_path / "texts.jsonl").read_text().splitlines()]
        assert len(records) == 3
        for record in records:
            assert record["text"].startswith("in the beginning")
            assert len(record["tokens"]) == smoke().data.length
            assert record["num_steps"] == 4
            assert 0 < record["nfe"] <= 5

    def test_stopped_in_a_round_it_ends_in_the_same_bits(self, unbroken, tmp_path):
        """Ctrl-C in round 1, the same command again; oracle: the run that was never stopped."""
        root = tmp_path / "stopped"
        for name in ("data", "tokenizer", "teacher", "judge"):
            shutil.copytree(unbroken.root / name, root / name)
        shutil.copy2(unbroken.root / "config.json", root)
        command = (SMOKE, f"--workdir={root}", "--stages=distill")
        files = [tmp_path / name for name in ("stdout", "stderr")]
        process = start_module("experiments.run", command, files, os.environ)
        metrics = root / "metrics.jsonl"
        try:
            while process.poll() is None and '"round": 1' not in (
                metrics.read_text() if metrics.exists() else ""
            ):
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            status = process.wait(600)
        finally:
            process.kill()
        stderr = files[1].read_text("utf-8")
        assert status == 75, stderr
        stopped = re.search(r"Stopped by SIGINT after step (\d+)", stderr)
        assert stopped, stderr
        assert 0 < int(stopped[1]) < smoke().distill.train.num_steps
        assert not (root / "rounds" / "02" / "final").exists()

        resumed = call("run", *command)
        assert resumed.status == 0, resumed.stderr
        results = json.loads((unbroken.root / "results.json").read_text())
        for record in results["rounds"]:
            params, _ = load_params(root / "rounds" / f"{record['round']:02d}" / "final")
            assert params_digest(params) == record["params_digest"]


def test_a_round_that_lost_its_last_checkpoint_takes_its_last_steps_again(unbroken, tmp_path):
    """The next round used to go on from the checkpoint before it, to other bits, and results.json stayed.

    A missing student was never made again, so the run could not be evaluated.
    """
    root = tmp_path / "run"
    shutil.copytree(unbroken.root, root)
    *_, last = sorted(int(path.name) for path in (root / "rounds/01").glob("[0-9]*"))
    for lost in ("rounds/02", f"rounds/01/{last}", "rounds/01/final"):
        shutil.rmtree(root / lost)
    with open_run(config_dict(smoke()), root) as run:
        run_stages(run, ["distill"])
        assert not run.workdir.results.exists()
    results = json.loads((unbroken.root / "results.json").read_text())
    for record in results["rounds"]:
        params, _ = load_params(root / "rounds" / f"{record['round']:02d}" / "final")
        assert params_digest(params) == record["params_digest"]


def take_data(run, unbroken):
    """Copies the unbroken run's data, which it takes seconds to prepare."""
    for name in ("data", "tokenizer"):
        shutil.copytree(unbroken.root / name, run.workdir.root / name)


def test_a_teacher_that_exists_is_taken_as_it_is(unbroken, tmp_path):
    """From another run of the same text: bit for bit, and nothing is trained."""
    config = smoke()
    config = dataclasses.replace(
        config,
        teacher=dataclasses.replace(config.teacher, checkpoint=str(unbroken.root / "teacher")),
    )
    with open_run(config_dict(config), tmp_path / "run") as run:
        take_data(run, unbroken)
        run_stages(run, ["data", "teacher"])
        taken, facts = load_params(run.workdir.teacher / "final")
    original, _ = load_params(unbroken.root / "teacher" / "final")
    assert params_digest(taken) == params_digest(original)
    assert facts["source"] == str(unbroken.root / "teacher")
    assert (facts["tokenizer"], facts["normalize"]) == (run.tokenizer.digest, "text8")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("stage", ["teacher", "judge"])
def test_a_model_that_is_not_there_is_named_before_any_stage_begins(tmp_path, stage):
    config = config_dict(smoke())
    config[stage].checkpoint = str(tmp_path / "nowhere")
    with open_run(config, tmp_path / "run") as run:
        with pytest.raises(ConfigError, match=rf"config\.{stage}\.checkpoint=.*no checkpoint at"):
            run_stages(run)
        assert not run.workdir.local.data.exists()


SPLIT = r"\.train\.batch_size=31 cannot be split over .*nearest that can is 32"


@pytest.mark.parametrize(
    ("stage", "field", "value", "error"),
    [
        ("teacher", "train.batch_size", 31, SPLIT),
        ("judge", "train.batch_size", 31, SPLIT),
        ("distill", "train.batch_size", 31, SPLIT),
        ("coupled", "train.batch_size", 31, SPLIT),
        ("coupled", "pool", "nowhere", r"\.pool=nowhere is not a stored pool"),
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_first(tmp_path, stage, field, value, error):
    """Oracle: the directory, where nothing is prepared. Stages that have delivered are not checked."""
    config = config_dict(smoke())
    config.distillers = ("sdtt", "coupled")
    config.update_from_flattened_dict({f"{stage}.{field}": value})
    with open_run(config, tmp_path / "run") as run:
        run = dataclasses.replace(run, mesh=AbstractMesh((2, 1, 1), AXES, (AxisType.Auto,) * 3))
        with pytest.raises(ConfigError, match=stage + error):
            run_stages(run)
        assert not run.workdir.local.data.exists()
        for number in (1, 2) if stage in ("distill", "coupled") else (0,):
            final(run.workdir.stage(stage, number)).mkdir(parents=True)
        check_found_elsewhere(run, STAGE_NAMES)


def test_a_mixture_that_is_not_there_is_named_before_any_stage_begins(tmp_path):
    """The error used to come when the text was prepared, for a large text an hour later."""
    config = config_dict(smoke())
    config.data.mixture = (f"{tmp_path / 'nowhere'}=0.5",)
    with open_run(config, tmp_path / "run") as run:
        with pytest.raises(
            ConfigError, match=r"config\.data\.mixture: .*nowhere holds no prepared"
        ):
            run_stages(run)
        assert not run.workdir.local.data.exists()


def test_a_teacher_of_another_size_or_kind_is_refused_before_data_are_prepared(unbroken, tmp_path):
    """Oracle: the directory. It used to show only when they were, for a large text hours later."""
    for checkpoint, said in (("teacher", "num_layers"), ("judge", "is a causal model; the first")):
        config = config_dict(smoke())
        fields = {"teacher.checkpoint": str(unbroken.root / checkpoint), "model.num_layers": 1}
        config.update_from_flattened_dict(fields | {"model.remat": "full"})
        with open_run(config, tmp_path / "run") as run:
            with pytest.raises(ConfigError, match=said) as caught:
                run_stages(run, ["data", "teacher"])
            assert not {"remat", "vocab_size"} & {*re.findall(r"\w+", str(caught.value))}
            assert not run.workdir.local.data.exists()
