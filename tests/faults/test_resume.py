"""Exact resume at every step and at every boundary. Oracle: the unbroken run, bit for bit."""

import json

import pytest

from experiments.stages import context
from experiments.stages import training as training_stages
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.checkpoints.digests import leaf_digests, params_digest
from sdtt_jax.checkpoints.store import Checkpoints, load_params
from sdtt_jax.training import loop
from sdtt_jax.trees import flat_leaves
from tests.experiments.small import small
from tests.training import tiny, toy


@pytest.mark.fault(
    row=23,
    fault="stopped after any step of a training",
    promise="resumed, every leaf of the final state is the unbroken run's, bit for bit",
)
def test_row_23_at_every_step(tmp_path):
    unbroken = tiny.run(tmp_path / "unbroken")
    for step in range(1, tiny.NUM_STEPS):
        tiny.run(tmp_path / str(step), num_steps=step, save_every=5)
        toy.assert_same(tiny.run(tmp_path / str(step)), unbroken)


STAGES = ("data", "teacher", "distill")


def delivered(root):
    """Digests of what every stage delivered."""
    folders = (root / "teacher", root / "rounds" / "01", root / "rounds" / "02")
    return [params_digest(load_params(folder / "final")[0]) for folder in folders]


def states(run):
    """Digests of every leaf of the last state of every training."""
    found = {}
    for stage, number in (("teacher", 0), ("distill", 1), ("distill", 2)):
        job = training_stages.training_job(run, stage, number)
        with Checkpoints(job.folder) as checkpoints:
            state, _ = checkpoints.restore(job.abstract)
        found |= {
            f"{stage} {number} {path}": digest
            for path, digest in leaf_digests(flat_leaves(state)).items()
        }
    return found


def metrics(root):
    timed = ("seconds", "tokens_per_second", "data_wait")
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.mark.fault(
    row=23,
    fault="stopped just before, at and after every boundary of stage and round",
    promise="round, dt, teacher, average and optimizer go on; every leaf and metric bit for bit",
)
def test_row_23_around_every_boundary(tmp_path, monkeypatch):
    config = small(tmp_path)
    # Compiled once for all ten runs, whose configs are the same; tests/faults/test_chaos.py starts processes.
    make, steps = training_stages.make_train_step, {}

    def made_once(loss, train_config):
        name = (loss.__qualname__, train_config)
        if name not in steps:
            steps[name] = make(loss, train_config)
        return steps[name]

    for module in (training_stages, context):
        monkeypatch.setattr(module, "make_train_step", made_once)
    with open_run(config, tmp_path / "unbroken") as run:
        run_stages(run, STAGES)
        expected = states(run)
    # Stage, round and step after which to stop; 4 is the last: saved, but nothing is delivered yet.
    stops = [("teacher", 0, 1), ("teacher", 0, 4), ("distill", 1, 0), ("distill", 1, 3)]
    stops += [("distill", 1, 4), ("distill", 2, 0), ("distill", 2, 1), ("distill", 2, 4)]
    train = loop.train

    def stopping(stage, number, step):
        def trained(state, step_fn, batch_at, key, config, **fields):
            job = batch_at.__self__
            if (job.stage, job.round) != (stage, number):
                return train(state, step_fn, batch_at, key, config, **fields)
            if step > 0:
                train(state, step_fn, batch_at, key, toy.until(config, step), **fields)
            raise loop.Interrupted(step, "a test")

        return trained

    for stop in stops:
        monkeypatch.setattr(training_stages, "train", stopping(*stop))
        with (
            open_run(config, tmp_path / "stopped") as run,
            pytest.raises(loop.Interrupted, match="a test"),
        ):
            run_stages(run, STAGES)
    monkeypatch.setattr(training_stages, "train", train)
    assert len(steps) == 2, "the teacher's and the student's"
    with open_run(config, tmp_path / "stopped") as run:
        run_stages(run, STAGES)
        assert states(run) == expected
    assert delivered(tmp_path / "stopped") == delivered(tmp_path / "unbroken")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "unbroken")
