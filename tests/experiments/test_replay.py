"""Rejected updates and steps taken twice. Oracle: the batch that a loss was made to fail on."""

import json

import jax.numpy as jnp
import pytest

from experiments.stages import objective
from experiments.stages import replay as module
from experiments.stages import training as training_stages
from experiments.stages.replay import ReplayError, replay
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.errors import ConfigError
from sdtt_jax.objectives import teacher_loss
from sdtt_jax.training.optimizers import OptimizerConfig
from tests.experiments.small import small

BAD = 2  # The number of the batch that fails, in step 3.


@pytest.fixture
def run(compiled_once, tmp_path, monkeypatch, capsys):  # noqa: ARG001
    """A run whose teacher has been trained with a loss that is NaN on one batch; its output is kept."""
    del capsys
    optimizer = OptimizerConfig(warmup_steps=6)
    with open_run(small(tmp_path, optimizer=optimizer), tmp_path / "run") as run:
        sums = [int(_batch(run, step).sum()) for step in range(4)]
        assert sums.count(sums[BAD]) == 1

        def failing(diffusion, config):
            loss_fn = teacher_loss(diffusion, config)

            def loss(params, context, batch, key):
                found = loss_fn(params, context, batch, key)
                bad = batch.sum() == sums[BAD]
                return found._replace(total=jnp.where(bad, jnp.nan, found.total))

            return loss

        monkeypatch.setattr(objective, "teacher_loss", failing)
        # What an attempt with another learning rate left, which stopped before its first checkpoint.
        stale = {"stage": "teacher", "round": 0, "step": 1, "loss": "inf"}
        run.workdir.rejected.write_text(json.dumps(stale) + "\n")
        run_stages(run, ["data", "teacher"])
        yield run


def _batch(run, step):
    return training_stages.training_job(run, "teacher").batch_at(step)


def test_a_rejected_update_is_told_and_can_be_taken_again(run, capsys):
    said = capsys.readouterr().out
    assert "reaches only 50% of its peak, because the warm-up outlasts the training" in said
    assert "step 3: loss nan" in said
    assert "rejected; its batch is named in rejected.jsonl" in said
    [record] = map(json.loads, run.workdir.rejected.read_text().splitlines())
    assert (record["stage"], record["step"], record["batch"]) == ("teacher", 3, BAD)
    assert record["loss"] == "nan"
    rows = run.train_split.batch(record["data_seed"], record["batch"], record["batch_size"])
    assert int(rows.sum()) == int(_batch(run, BAD).sum())

    replay(run, "teacher@3")
    said = capsys.readouterr().out
    assert "from the state after step 2, step 3 twice" in said
    assert said.count("the update is rejected") == 2
    assert "the same bits in all" in said
    assert len(run.workdir.rejected.read_text().splitlines()) == 1


def test_the_warm_up_of_an_optimizer_that_is_not_reset_ends_in_a_later_round(
    run, monkeypatch, capsys
):
    """Oracle: round 1 has updates 0 to 3, round 2 has 4 to 7, and update 6 is the first at the peak."""
    monkeypatch.setattr(training_stages, "train", lambda state, *_, **__: state)
    capsys.readouterr()
    run_stages(run, ["distill"])
    before, _, after = capsys.readouterr().out.partition("round 2 of 2")
    assert "reaches only 50% of its peak" in before
    assert "of its peak" not in after


def test_different_bits_are_an_error_that_names_the_arrays(run, monkeypatch):
    """By default in the step after the latest checkpoint before the end, that of step 2."""
    calls = []

    def digests(leaves):
        calls.append(len(calls))
        return dict.fromkeys(leaves, "0") | {"params/head/bias": str(len(calls))}

    monkeypatch.setattr(module, "leaf_digests", digests)
    with pytest.raises(
        ReplayError, match=r"Step 3 of teacher, .* different bits in params/head/bias"
    ):
        replay(run, "teacher")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data", "names no training"),
        ("distill", "names no training"),
        ("distill/3", "rounds are 1 to 2"),
        ("coupled_idlm/2", "rounds are 1 to 1"),
        ("teacher@5", "its steps are 1 to 4"),
        ("teacher@0", "its steps are 1 to 4"),
        ("skeleton", "the run trains no skeleton"),
        ("teacher", "this training has not begun"),
        ("distill/2@3", "this training has not begun"),
        ("judge", "the run trains no judge, because config.judge.checkpoint names one"),
    ],
)
def test_what_cannot_be_taken_again_is_named(tmp_path, name, message):
    """Also if another training, round 1, has rejected an update."""
    config = small(tmp_path)
    config.judge.checkpoint = "elsewhere"
    with open_run(config, tmp_path / "run") as run:
        run.workdir.rejected.write_text('{"stage": "distill", "round": 1, "step": 1}\n')
        with pytest.raises(ConfigError, match=message):
            replay(run, name)
    made = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert made == {"config.json", "rejected.jsonl"}
