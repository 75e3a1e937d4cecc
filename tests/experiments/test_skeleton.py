"""A plan of every n-th token, from training to text. Oracle: a text that counts through ten letters, of which
every fourth counts in fours."""

import jax
import numpy as np
import pytest

import sdtt_jax
from experiments.settings import run_config
from experiments.stages.runner import open_run, run_stages
from experiments.stages.training import training_job
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.harness import (
    Options,
    generations,
    log_likelihoods,
    rolling_log_likelihoods,
)
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import load_subject
from tests.experiments.small import small
from tests.forking import run_module
from tests.worlds import noisy_params

LETTERS, EVERY, MODE = "abcdefghij", 4, "skeleton:every=4"


def configured(folder):
    """A run in `folder` whose text counts."""
    config = small(folder)
    (folder / "corpus.txt").write_text(LETTERS * 1_000)
    config.judge.skeleton, config.judge.train.num_steps = EVERY, 120
    config.judge.train.save_every = config.judge.train.log_every = 60
    config.judge.train.optimizer.warmup_steps = 1
    config.judge.train.optimizer.learning_rate = 0.02
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Teacher and judge have learnt nothing; the skeleton is trained."""
    folder = tmp_path_factory.mktemp("skeleton")
    with open_run(configured(folder), folder / "run") as run:
        run_stages(run, ["data"])
        for path, network in ((run.workdir.teacher, run.denoiser), (run.workdir.judge, run.judge)):
            run.deliver(path, network, noisy_params(network, 0), stage=path.name)
        run_stages(run, ["judge"])
    return folder / "run"


def test_the_plan_counts_in_fours_and_the_model_fills_the_rest(root):
    """32 texts of 16 tokens; an untrained model would get one step in ten right."""
    helper, model = sdtt_jax.load(root / "skeleton"), sdtt_jax.load(root / "teacher")
    texts = model.sample(jax.random.key(0), 32, 3, mode=MODE, helper=helper)
    texts = [model.tokenizer.decode(row) for row in texts]
    places = np.array([[LETTERS.find(letter) for letter in text[::EVERY]] for text in texts])
    right = (places[:, 1:] - places[:, :-1]) % len(LETTERS) == EVERY
    assert right.mean() > 0.8
    assert all(len(text) == 16 for text in texts)


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("skeleton", "skeleton:every=8", "n = 8, but the helper was trained with n = 4"),
        ("skeleton", "energy", "n = 1, but the helper was trained with n = 4"),
        ("judge", MODE, "n = 4, but the helper was trained with n = 1"),
    ],
)
def test_a_helper_of_other_texts_is_refused(root, name, mode, said):
    helper, model = sdtt_jax.load(root / name), sdtt_jax.load(root / "teacher")
    with pytest.raises(ConfigError, match=said):
        model.sample(jax.random.key(0), 1, 3, mode=mode, helper=helper)


def test_only_tokens_that_are_trained_count_for_its_speed(root):
    with open_run(configured(root.parent), root) as run:
        jobs = [training_job(run, stage) for stage in ("judge", "skeleton")]
    assert [job.tokens_per_batch // job.config.batch_size for job in jobs] == [16, 16 // EVERY]


@pytest.mark.parametrize(
    "call",
    [
        lambda path: load_subject(Settings(), None, path, "none", None),
        lambda path: load_subject(Settings(), path, "none", "none", None),
        lambda path: sdtt_jax.load(path).score(np.zeros((1, 4), np.int32)),
        lambda path: sdtt_jax.load(path).sample(jax.random.key(0), 1, 4),
        lambda path: log_likelihoods(sdtt_jax.load(path), [("ab", "cd")], Options()),
        lambda path: rolling_log_likelihoods(sdtt_jax.load(path), ["abcd"], Options()),
        lambda path: generations(sdtt_jax.load(path), [("ab", {})], Options(max_tokens=2)),
    ],
    ids=["judge", "subject", "score", "sample", "likelihoods", "rolling", "generations"],
)
def test_to_it_a_text_is_another_one_so_it_judges_and_writes_nothing(root, call):
    with pytest.raises(ConfigError, match="models only one token in 4"):
        call(str(root / "skeleton"))


def test_it_is_inspected_all_the_same(root):
    done = run_module("experiments.inspect", [f"--checkpoint={root / 'skeleton'}"])
    assert (done.status, "models only one token in 4" in done.stdout) == (0, True), done.stderr
    facts = done.stdout.partition("There is")[0].splitlines()
    # Names, fields and values in columns: the longest name, uniform_share, used to push its value aside.
    assert [line for line in facts if line[13] != " " or line[31] != " " or line[32] == " "] == []


@pytest.mark.parametrize(("every", "said"), [(1, "the judge itself"), (17, "data.length >= 17")])
def test_values_that_cannot_work_are_named(tmp_path, every, said):
    config = small(tmp_path)
    config.judge.skeleton = every
    with pytest.raises(ConfigError, match=said):
        run_config(config)
