"""The benchmark. Oracles: sums by hand, the library's own data path, a process that is killed."""

import dataclasses
import io
import json
import os
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarking import report, suites, worker
from experiments.benchmarking.cases import COUPLED, MATMUL, Job, average_key
from experiments.benchmarking.report import Measured
from experiments.benchmarking.worker import Worker, WorkerError
from experiments.configs.demo import demo
from experiments.configs.owt_small import owt
from experiments.configs.smoke import smoke
from sdtt_jax.config import changed, to_mapping
from sdtt_jax.data import DataConfig
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.coupled import states_along
from sdtt_jax.distillation.loss import distillation_batch
from sdtt_jax.distillation.trajectories import Trajectories, noise_of
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.flops import (
    block_flops,
    distill_flops,
    head_flops,
    judge_flops,
    sample_flops,
    teacher_flops,
)
from tests.experiments.processes import call

SMALL = DenoiserConfig(vocab_size=50_257, length=1024)
TINY = DenoiserConfig(vocab_size=4, length=3, num_layers=2, embed_dim=8, num_heads=2, mlp_ratio=4)
SMALLEST = (
    "--config=experiments/configs/smoke.py",
    "--config.model.num_layers=1",
    "--config.data.length=32",
    "--repeats=2",
)


def test_block_and_head_flops_are_the_matmuls():
    """Each product `[n, a] @ [a, b]` costs 2 n a b."""
    n, d = TINY.length, TINY.embed_dim
    products = [(n, d, 3 * d), (n, d, d), (n, d, 4 * d), (n, 4 * d, d), (n, d, n), (n, n, d)]
    expected = TINY.num_layers * sum(2 * a * b * c for a, b, c in products)
    assert block_flops(TINY, 1) == expected
    assert block_flops(TINY, 5) == 5 * expected
    assert head_flops(TINY, 7) == 2 * 7 * d * 5


def test_flops_at_the_papers_sizes():
    """212 GFLOP per network call, about 1.2 TFLOP for a distillation step at batch 1."""
    assert block_flops(SMALL, 1) == pytest.approx(212e9, rel=0.01)
    # A generation's first call, at MASK alone, needs one position.
    assert sample_flops(SMALL, 1, 16) == 15 * block_flops(SMALL, 1) + head_flops(SMALL, 1024)
    assert distill_flops(SMALL, 1, 512, num_distill_steps=2, num_trajectories=1) == pytest.approx(
        1.2e12, rel=0.03
    )
    assert teacher_flops(SMALL, 1, 512) == pytest.approx(3 * (212.6e9 + 39.5e9), rel=0.01)


def test_judge_flops_are_those_of_causal_attention():
    """Token i meets i + 1 tokens in two products; everything else as in the denoiser."""
    n, d = TINY.length, TINY.embed_dim
    products = [(n, d, 3 * d), (n, d, d), (n, d, 4 * d), (n, 4 * d, d)]
    pairs = sum(i + 1 for i in range(n))
    layer = sum(2 * a * b * c for a, b, c in products) + 2 * 2 * d * pairs
    assert judge_flops(TINY, 2) == 2 * (TINY.num_layers * layer + 2 * n * d * 5)


def test_distill_flops_count_teacher_calls_and_heads():
    once = distill_flops(SMALL, 2, 900, num_distill_steps=2, num_trajectories=1)
    blocks, head = block_flops(SMALL, 2), head_flops(SMALL, 900)
    assert once == 5 * blocks + 4 * head
    longer = distill_flops(SMALL, 2, 900, num_distill_steps=4, num_trajectories=1)
    assert longer - once == 2 * blocks
    more = distill_flops(SMALL, 2, 900, num_distill_steps=2, num_trajectories=3)
    assert more - once == 2 * blocks + 2 * head


def test_half_of_the_tokens_are_masked_by_the_chosen_key():
    config = smoke()
    sizes = dataclasses.replace(config.denoiser(31), length=128)
    diffusion = MaskedDiffusion(Denoiser(sizes), make_schedule(config.schedule))
    job = Job("train", "lean", {}, 31, 1)
    tokens = jax.numpy.zeros((1, 128), jax.numpy.int32)
    key = average_key(job, config, diffusion, tokens)
    key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    _, x_t, _ = distillation_batch(diffusion, tokens, key, config.distill)
    assert 0.45 < float((x_t == sizes.mask_id).mean()) < 0.55


def test_a_noise_coupled_student_is_timed_where_its_states_are_on_average():
    """Two fifths of its states are fully masked, the others spread evenly: 0.4 + 0.6 / 2 of all tokens."""
    config = changed(smoke(), coupled={"full_share": 0.4})
    sizes = dataclasses.replace(config.seeing_denoiser("coupled", 31), length=128)
    diffusion = MaskedDiffusion(CoupledDenoiser(sizes), make_schedule(config.schedule))
    tokens = jax.numpy.zeros((1, 128), jax.numpy.int32)
    key = average_key(Job("train", COUPLED, {}, 31, 1), config, diffusion, tokens)
    key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    noise = noise_of(diffusion, jax.random.key(0)[None], 128)
    stage = dataclasses.replace(config.coupled, hindsight=False)
    states = states_along(diffusion, Trajectories(noise, tokens), key, stage, round=1)
    assert float(states.reached.mean()) == pytest.approx(0.7, abs=0.02)


def _measured(seconds, error=None, **counts):
    runs = [{"seconds": s, "peak_gb": s, **counts} for s in seconds]
    setup = {"compile_s": 1.0, "memory": None, "device": {"platform": "cpu", "kind": "cpu"}}
    return Measured(setup, runs, error)


def _row(lean, naive):
    config = owt("small")
    job = Job("sample", "lean", {}, 50_257, 1, 16)
    matmul = _measured([1.0], flops_per_s=100e9)
    matmul.setup["shapes"] = "[1024, 768] @ [768, 3072]"
    return report.entry(config, job, {"lean": lean, "naive": naive, MATMUL: matmul})


def _printed(record):
    stream = io.StringIO()
    suites.show(record, Console(file=stream, width=118))
    return stream.getvalue()


def test_a_row_of_the_record_by_hand():
    row = _row(_measured([40.0, 50.0, 90.0], calls=16.0), _measured([100.0, 120.0], calls=16.0))
    assert row["num_steps"] == 16
    assert (row["lean_s"], row["naive_s"], row["ratio"]) == (50.0, 110.0, 2.2)
    assert row["matmul_share"] == pytest.approx(sample_flops(SMALL, 1, 16) / 100e9 / 50)
    assert (row["lean"]["low_s"], row["lean"]["high_s"]) == (40.0, 90.0)
    assert (row["lean_peak_gb"], row["naive_peak_gb"]) == (90.0, 120.0)
    text = _printed({"sample": [row]})
    assert "50 (40–90)" in text
    assert "3,268 unavoidable GFLOP would take" in text
    assert "died" not in text


def test_a_variant_that_died_is_named_and_the_other_one_keeps_its_numbers():
    row = _row(_measured([40.0], calls=16.0), _measured([100.0], "out of memory", calls=16.0))
    assert row["naive_s"] is None
    assert row["ratio"] is None
    assert row["matmul_share"] > 0
    text = _printed({"sample": [row]})
    assert "sample, 16 steps: naive died: out of memory" in text
    assert "40 (40–40)" in text


def test_everything_died_and_the_table_still_prints():
    nothing = {name: Measured(error="no luck") for name in ("lean", "naive", MATMUL)}
    job = Job("train", "lean", {}, 50_257, 1)
    row = report.entry(owt("small"), job, nothing)
    data = report.data_entry(owt("small"), nothing)
    text = _printed({"train": row, "data": data})
    for line in ("train: lean", "train: naive", "train: matmul", "data: lean", "data: naive"):
        assert f"{line} died: no luck" in text


def _job(variant, suite="train"):
    return Job(suite, variant, to_mapping(smoke()), 31, 2)


@pytest.mark.parametrize("interleave", [True, False])
def test_a_killed_worker_is_reported_and_the_others_go_on(monkeypatch, interleave):
    lines = []
    plain = worker.Worker.run
    killed = []

    def run(self, limit_s):
        if self.job.variant == "naive" and not killed:
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
        return plain(self, limit_s)

    monkeypatch.setattr(worker.Worker, "run", run)
    # Both run the matmul yardstick under other names, because it is ready in a moment.
    monkeypatch.setattr(worker.Worker, "prepare", _as_matmul)
    jobs = [_job("naive"), _job("lean")]
    *_, measured = suites.measure("train", jobs, 3, lines.append, interleave=interleave)
    assert "SIGKILL" in measured["naive"].error
    assert measured["lean"].error is None
    assert len(measured["lean"].runs) == 3
    assert any(line.startswith("train: naive died: killed") for line in lines)


def test_what_takes_longer_than_the_limit_is_ended(monkeypatch):
    """A stopped process never answers."""
    plain, lines = worker.Worker.run, []

    def run(self, limit_s):
        os.kill(self._process.pid, signal.SIGSTOP)
        return plain(self, limit_s)

    monkeypatch.setattr(worker.Worker, "run", run)
    monkeypatch.setattr(worker.Worker, "prepare", _as_matmul)
    *_, measured = suites.measure("train", [_job("lean")], 3, lines.append, limit_s=0.5)
    assert measured["lean"].error == "took longer than --limit_s=0.5"
    assert lines[-1] == "train: lean died: took longer than --limit_s=0.5"


def _as_matmul(self, on_phase):
    self._send(dataclasses.asdict(dataclasses.replace(self.job, variant=MATMUL)))
    while "phase" in (message := self._receive()):
        on_phase(message["phase"])
    return message


def test_a_worker_that_fails_gives_its_last_line():
    with Worker(_job("lean", suite="nonsense")) as worker, pytest.raises(WorkerError) as caught:
        worker.prepare(print)
    assert "exit status 1: ValueError: no case for suite 'nonsense'" in str(caught.value)


def test_a_workers_user_error_is_passed_on():
    config = to_mapping(dataclasses.replace(smoke(), data=DataConfig(corpus="nowhere.txt")))
    job = Job("data", "naive", config, 31, 2)
    with Worker(job) as worker, pytest.raises(WorkerError, match=r"nowhere\.txt does not exist"):
        worker.prepare(print)


def test_peak_memory_is_counted_in_bytes():
    before = worker.peak_bytes()
    block = np.ones(2**25)  # 256 MiB
    assert worker.peak_bytes() >= max(before, block.nbytes)


def _check_row(row):
    """Checks the figures of both variants, from two repetitions each."""
    for name in ("lean_s", "naive_s", "ratio", "matmul_share", "lean_peak_gb", "naive_peak_gb"):
        assert row[name] > 0, name
    for variant in ("lean", "naive"):
        assert len(row[variant]["seconds"]) == 2
        assert row[variant]["memory"]["arguments_gb"] > 0
        assert row[variant]["error"] is None


@pytest.mark.slow
def test_a_training_step_side_by_side(tmp_path):
    """Through the command, with each variant in a process of its own."""
    output = tmp_path / "out" / "b.json"
    done = call("benchmark", *SMALLEST, "--suite=train", f"--output={output}")
    assert done.status == 0, done.stderr
    record = json.loads(output.read_text())
    assert {"train", "jax", "config", "batch_size", "repeats"} <= set(record)
    train = record["train"]
    _check_row(train)
    assert train["lean"]["masked"] == train["naive"]["masked"]
    assert train["lean"]["loss"] > 0
    assert "naive / lean" in done.stdout
    assert "unavoidable GFLOP would take" in done.stdout
    assert "train: lean: compiling" in done.stderr
    assert "train: 2 of 2: lean" in done.stderr


def test_a_sample_and_a_judge_side_by_side():
    """In this process, where a worker's peak is what the compiler reports for its program."""
    config = changed(smoke(), model={"num_layers": 1}, data={"length": 32})
    plan = suites.BenchmarkPlan(
        suite=("sample", "judge"), num_steps=(2,), repeats=2, in_process=True
    )
    record = suites.benchmark(config, plan, print, lambda _: None)
    [sample] = record["sample"]
    assert sample["num_steps"] == 2
    judge = record["judge"]
    for row in (sample, judge):
        _check_row(row)
    assert judge["lean"]["loss"] == pytest.approx(judge["naive"]["loss"], rel=1e-5)


def test_the_demos_rows_are_its_steps_at_its_batch():
    made = list(suites.rows(demo(), suites.BenchmarkPlan(suite=("demo",))))
    assert [(row.title, row.jobs[0].suite) for row in made] == [
        ("teacher step", "teacher"),
        ("distillation step", "train"),
        ("8-step generation", "sample"),
        ("judging", "own_judge"),
    ]
    for row in made:
        more = [COUPLED] if row.title in ("distillation step", "8-step generation") else []
        assert [job.variant for job in row.jobs] == [MATMUL, "lean", "naive", *more]
        # The characters of the demo's text are a to z and the space; three pieces are special.
        texts = 32 if row.title in ("teacher step", "distillation step") else 64
        assert {(job.batch_size, job.vocab_size) for job in row.jobs} == {(texts, 30)}


@pytest.mark.parametrize(("suite", "steps", "calls"), [("train", 0, (3, 8)), ("sample", 2, (2, 2))])
def test_a_student_that_sees_noise_is_measured_beside_one_that_does_not(suite, steps, calls):
    """On a tiny model, beside 0.4 s of lean code: SDTT's step is 3 student calls and 1 + 4 teacher calls."""
    config = smoke()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_layers=1, embed_dim=16, num_heads=2),
        data=dataclasses.replace(config.data, length=16),
    )
    train = {"num_steps": 16, "batch_size": 2}
    config = changed(config, coupled={"num_calls": 8, "num_trajectories": 16, "train": train})
    job = Job(suite, COUPLED, to_mapping(config), 30, 2, steps)
    *_, measured = suites.measure("a row", [job], 2, lambda _: None, in_process=True)
    lean = Measured(runs=[{"seconds": 0.4, "calls": 2.0, "masked": 16.0}])
    row = report.entry(config, job, measured | {"lean": lean, "naive": lean, MATMUL: Measured()})
    assert (row["coupled_calls"], row["lean_calls"]) == calls
    per_call = row["coupled_s"] / calls[0], 0.4 / calls[1]
    assert row["coupled_ratio"] == pytest.approx(per_call[0] / per_call[1])
    [line] = report.coupled_lines({"demo, a row": row})
    assert line.startswith("demo, a row: a student that sees noise takes")
    if suite == "train":
        # 16 trajectories of eight calls each for 32 texts that the training shows: 4 calls per text.
        seconds = row["coupled_s"] + 4 * row["trajectory_call_s"]
        assert row["coupled_whole_ratio"] == pytest.approx(seconds / (3 + 4) / per_call[1])
        assert "if the 4 calls of the teacher's trajectories are included" in line


def test_such_a_student_can_be_added_to_training_and_sampling():
    plan = suites.BenchmarkPlan(suite=("train", "teacher", "sample"), num_steps=(2,), coupled=True)
    made = {row.title: [job.variant for job in row.jobs] for row in suites.rows(smoke(), plan)}
    plain = [MATMUL, "lean", "naive"]
    assert made == {
        "train": [*plain, COUPLED],
        "teacher": plain,
        "sample, 2 steps": [*plain, COUPLED],
    }
    with pytest.raises(ConfigError, match="--coupled needs --suite=train or sample; leave it out"):
        suites.BenchmarkPlan(suite=("demo",), coupled=True)


BAD = {
    "--suite=trian": "--suite='trian' is unknown (did you mean 'train'?); choose one of train, teacher, ",
    "--num_steps=8,x": "--num_steps: 'x' is not a whole number; give whole numbers separated by commas.",
    "--num_steps=0": "num_steps must be positive, not 0.",
    "--batch_size=0": "--batch_size must be positive, not 0.",
    "--race_helper=causl": "--race_helper='causl' is unknown (did you mean 'causal'?); choose one of",
    "--output=README.md/b.json": "--output=README.md/b.json cannot be written to: ",
    "--config.model.num_layer=2": "config.model has no field 'num_layer'",
    "--mode=blocks:length=100": "blocks of 100 do not divide 1024 tokens",  # after the training
    "--against=energy": "mode=energy needs another model, which --suite=sample does not have",
    "--suite=sample --coupled --mode=blocks:length=128": "makes calls without noise, but the",
}


def test_bad_flags_are_one_line_and_status_2():
    for argument, message in BAD.items():
        done = call("benchmark", *argument.split())
        assert done.status == 2, done
        assert done.stderr.count("\n") == 1, done
        assert message in done.stderr
