"""The race of the benchmark, on a tiny model. Oracles: calls counted by hand, and what each of them reads."""

import dataclasses

import pytest

from experiments.benchmarking import memory, report, suites, worker
from experiments.benchmarking.cases import Job
from experiments.configs.owt_small import owt
from experiments.configs.smoke import smoke
from sdtt_jax.config import to_mapping
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.flops import sample_flops
from tests.experiments.test_benchmark import _printed as printed


def test_a_race_and_a_judge_in_this_process(monkeypatch):
    """On a tiny model. The causal model makes a call for each token, the student as many as it is told."""
    config = smoke()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_layers=1, embed_dim=16, num_heads=2),
        judge=dataclasses.replace(config.judge, model=CausalConfig(0, 0, 1, 16, 2)),
        data=dataclasses.replace(config.data, length=16),
    )
    monkeypatch.setattr(worker.Worker, "run", None)  # no process is started
    modes = "grid skeleton:every=4 speculative:window=4"
    plan = suites.BenchmarkPlan(
        suite=("race",), num_steps=(2,), repeats=2, in_process=True, race_batches=(3,), modes=modes
    )
    saved, lines = [], []

    def save(record):
        races = record["race"].values()
        saved.append([len(race["entrants"]["causal"]["seconds"]) for race in races])

    record = suites.benchmark(config, plan, lines.append, save)
    assert list(record["race"]) == ["race, 3 × 16 tokens, float32", "race, 3 × 16 tokens, bfloat16"]
    # The record is saved after every repetition, and at the end of a race.
    assert saved == [[1], [2], [2], [2, 1], [2, 2], [2, 2]]
    for race in record["race"].values():
        student, causal = race["entrants"]["student, 2 calls"], race["entrants"]["causal"]
        assert (student["calls"], causal["calls"]) == (2, 16)
        assert race["entrants"]["skeleton:every=4, 2 calls"]["calls"] == 16 / 4 + 1
        assert race["entrants"]["speculative:window=4, 2 calls"]["calls"] == 2 * 2 + 1
        assert student["ratio"] == causal["median_s"] / student["median_s"]
        assert causal["tokens_per_s"] == 3 * 16 / causal["median_s"]
        assert len(causal["seconds"]) == 2
        assert 0 < student["peak_gb"] < 0.1
    wide, narrow = (race["entrants"]["causal"]["memory"] for race in record["race"].values())
    assert narrow["arguments_gb"] < 0.6 * wide["arguments_gb"]  # parameters in 16 bits
    assert "times as fast" in printed(record)

    jobs = [Job("own_judge", v, to_mapping(config), 30, 2) for v in ("lean", "naive")]
    *_, measured = suites.measure("judging", jobs, 1, lines.append, in_process=True)
    losses = [measured[variant].median("loss") for variant in ("lean", "naive")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_the_memory_does_not_hold_is_not_run(monkeypatch):
    config = smoke()
    model = dataclasses.replace(config.model, num_layers=1, embed_dim=16, num_heads=2)
    data = dataclasses.replace(config.data, length=16)
    plain = to_mapping(dataclasses.replace(config, model=model, data=data))
    monkeypatch.setattr(memory, "free_gb", lambda: 0.0)
    job = Job("race", "causal", plain, 31, 2)
    *_, measured = suites.measure("race", [job], 2, lambda _: None, in_process=True)
    assert measured["causal"].error == "not run: it needs 0.0 GB, but only 0.0 are free"
    assert measured["causal"].runs == []


def test_flops_are_known_of_calls_that_were_counted_and_read_whole_texts():
    config, job = owt("small"), Job("race", "lean", {}, 50_257, 2, 16)
    assert report.sampler_flops(config, job, 16.0) == sample_flops(config.denoiser(50_257), 2, 16)
    assert report.sampler_flops(config, job, None) is None
    blocks = dataclasses.replace(job, mode="blocks:length=64")
    assert report.sampler_flops(config, blocks, 16.0) is None


@pytest.mark.parametrize(
    ("suite", "field", "value"),
    [
        ("race", "race_batches", (7,)),
        ("race", "modes", "confidence"),
        ("sample", "mode", "confidence"),
        ("race", "num_steps", (9,)),
        ("data", "batch_size", 2),
    ],
)
def test_flags_of_other_suites_are_refused(suite, field, value):
    suites.BenchmarkPlan(suite=(suite,), **{field: value})
    other = "demo" if field == "batch_size" else "train"
    with pytest.raises(ConfigError, match=f"--{field} is for .*; add that, or leave it out"):
        suites.BenchmarkPlan(suite=(other,), **{field: value})
