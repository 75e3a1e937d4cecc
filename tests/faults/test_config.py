"""Another config, other data, another owner. Oracle: the messages, and that nothing is touched."""

import dataclasses
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.configs.smoke import smoke
from experiments.settings import config_dict
from experiments.stages.runner import open_run, run_stages
from experiments.stages.training import training_job
from experiments.stages.workdir import FREE_FIELDS, claim_workdir, lock, write_json
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.config import to_mapping
from sdtt_jax.errors import ConfigError, MismatchError, UserError
from sdtt_jax.parallel.placement import unbox
from tests.checkpoints.stored import state_at
from tests.training import toy

CONFIG = smoke()
TEXT = "the quick brown fox jumps over the lazy dog and runs far away from here\n"


def with_corpus(path, text):
    path.write_text(text)
    return config_dict(
        dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, corpus=str(path)))
    )


@pytest.mark.fault(
    row=24,
    fault="the config changed since the run began",
    promise="refused with the fields that differ, old and new, if anything has come of them; the run is left "
    "as it was",
)
@pytest.mark.parametrize(
    ("field", "changed", "line"),
    [
        ("seed", 7, "seed: 0 -> 7"),
        ("model.embed_dim", 64, "model.embed_dim: 32 -> 64"),
        ("distill.train.batch_size", 16, "distill.train.batch_size: 32 -> 16"),
        ("distill.train.spike_factor", 3.0, "distill.train.spike_factor: 0.0 -> 3.0"),
        ("data.length", 16, "data.length: 32 -> 16"),
    ],
)
def test_row_24_another_config(tmp_path, field, changed, line):
    workdir = claim_workdir(tmp_path, CONFIG)
    (workdir.round(1) / "final").mkdir(parents=True)
    before = workdir.config.read_bytes()
    with pytest.raises(ConfigError, match="holds a run of another config") as error:
        claim_workdir(tmp_path, replaced(CONFIG, field, changed))
    assert line in str(error.value)
    assert "--workdir" in str(error.value)
    assert workdir.config.read_bytes() == before


def replaced(config, field, value):
    name, _, rest = field.partition(".")
    inner = replaced(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})


@pytest.mark.fault(
    row=24,
    fault="a field changed that decides when things are written or where computed",
    promise="accepted",
)
@pytest.mark.parametrize(
    "field", sorted(set(FREE_FIELDS) - {"mesh", "watchdog_seconds", "skip_bad"})
)
def test_row_24_free_fields(tmp_path, field):
    (claim_workdir(tmp_path, CONFIG).round(1) / "final").mkdir(parents=True)
    claim_workdir(tmp_path, replaced(CONFIG, f"distill.train.{field}", 3))
    claim_workdir(tmp_path, replaced(CONFIG, "mesh.fsdp", 2))
    claim_workdir(tmp_path, replaced(CONFIG, "watchdog_seconds", 60.0))
    claim_workdir(tmp_path, replaced(CONFIG, "data.skip_bad", 5))


@pytest.mark.fault(
    row=24,
    fault="the corpus changed and the data were prepared anew in a run that has trained",
    promise="refused: finished stages and checkpoints know the fingerprint of their data",
)
def test_row_24_other_data(tmp_path):
    corpus = tmp_path / "corpus.txt"
    config = with_corpus(corpus, TEXT * 200)
    with open_run(config, tmp_path / "run") as run:
        shapes = unbox(jax.eval_shape(run.denoiser.init, jax.random.key(0)))
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        run.deliver(run.workdir.teacher, run.denoiser, params, stage="teacher")
        run.delivered(run.workdir.teacher, run.denoiser, "distill")
        before = training_job(run, "judge").metadata
    corpus.write_text(TEXT * 100 + TEXT.replace("fox", "cat") * 100)
    shutil.rmtree(tmp_path / "run" / "data")
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    with open_run(config, tmp_path / "run") as run:
        run_stages(run, ["data"])
        with pytest.raises(MismatchError, match=r"teacher/final was trained on other data than"):
            run.delivered(run.workdir.teacher, run.denoiser, "distill")
        after = training_job(run, "judge").metadata
    assert before.pop("data") != after.pop("data")
    assert before == after


@pytest.mark.fault(
    row=30,
    fault="the default PRNG implementation is another than the run began with",
    promise="continues: a run's keys are Threefry's; checkpoints with keys of another one are refused",
)
def test_row_30_another_default_prng(tmp_path):
    config = with_corpus(tmp_path / "corpus.txt", TEXT * 200)
    with open_run(config, tmp_path / "run") as run:
        before = training_job(run, "judge").metadata
        with jax.default_prng_impl("rbg"):
            after = training_job(run, "judge").metadata
            with Checkpoints(tmp_path / "kept", metadata=after | {"random": "key<rbg>"}) as kept:
                kept.save(state_at(1))
        with (
            Checkpoints(tmp_path / "kept") as kept,
            pytest.raises(MismatchError, match=r"random.*key<rbg>"),
        ):
            kept.restore(toy.abstract_like(state_at(1)), expect=after)
        # JAX_RANDOM_SEED_OFFSET changes all keys and no implementation.
        jax.config.update("jax_random_seed_offset", 7)
        try:
            moved = training_job(run, "judge").metadata
        finally:
            jax.config.update("jax_random_seed_offset", 0)
    # As earlier checkpoints have it, which therefore continue.
    assert before["random"] == "key<fry>, partitionable"
    assert after == before
    assert moved["random"] == "key<fry>, partitionable, seeds moved by 7"


HOLD = """
import sys, time
from pathlib import Path
from experiments.stages.workdir import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault(
    row=28,
    fault="two runs in one workdir",
    promise="the second is refused and told the owner's process, host and time; a killed owner holds nothing",
)
def test_row_28_two_runs_in_one_workdir(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"\(process {owner.pid} on \S+ since \d{{4}}-"):
            lock(tmp_path).__enter__()
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    with lock(tmp_path):
        claim_workdir(tmp_path, CONFIG)


@pytest.mark.fault(
    row=17,
    fault="the workdir cannot be made or written",
    promise="an error at the start that names it",
)
def test_row_17_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to --workdir=.*file/run"):
        lock(tmp_path / "file" / "run").__enter__()


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its config.json lacks the fields that came later; their defaults change nothing."""
    workdir = claim_workdir(tmp_path, CONFIG)
    old = to_mapping(CONFIG)
    for stage in ("teacher", "judge", "distill"):
        del old[stage]["train"]["spike_factor"]
    write_json(workdir.config, {"config": old, "config_file": ""})
    claim_workdir(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 7"):
        claim_workdir(tmp_path, replaced(CONFIG, "seed", 7))


@pytest.mark.parametrize("content", ["[]", "{}", '{"config": 3}'])
def test_a_config_without_a_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json (is damaged|holds no JSON object)"):
        claim_workdir(tmp_path, CONFIG)
