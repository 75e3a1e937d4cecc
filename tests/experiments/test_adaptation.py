"""From a causal model to a denoiser and its rounds, in a run. Oracles: parameters and tokenizer of the base,
and the share of open edges by hand.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

import sdtt_jax
from experiments.configs.english import english
from experiments.configs.english_smoke import english_smoke
from experiments.settings import JudgeConfig, config_dict, run_config
from experiments.stages.runner import open_run, run_stages
from experiments.stages.training import check_found_elsewhere
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.errors import CheckpointError, ConfigError, UserError
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.networks.config import LlamaDenoiserConfig
from sdtt_jax.objectives import open_share
from tests.experiments.small import TEXT, small
from tests.interchange import test_gguf

STAGES = ("data", "teacher", "distill")


def adapting(folder, base, **fields):
    config = run_config(small(folder))
    teacher = dataclasses.replace(config.teacher, init_from=str(base), attention_annealing=2)
    tokenizer = dataclasses.replace(config.tokenizer, kind="hub")
    distill = dataclasses.replace(config.distill, num_rounds=1)
    return config_dict(
        dataclasses.replace(config, teacher=teacher, tokenizer=tokenizer, distill=distill, **fields)
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny causal model with a tokenizer of its own."""
    return test_gguf.write(tmp_path_factory.mktemp("base") / "m.gguf", test_gguf.weights())


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    with open_run(adapting(folder, base), folder / "run") as run:
        run_stages(run, STAGES)
    return folder / "run"


def test_the_run_has_the_network_and_the_tokenizer_of_the_base(adapted, base):
    model, causal = sdtt_jax.load(adapted), sdtt_jax.load(base)
    assert model.facts["kind"] == "llama-denoiser"
    assert model.facts["round"] == 1
    assert isinstance(model.config, LlamaDenoiserConfig)
    assert (model.config.shift, model.config.causal) == (True, False)
    assert model.config.length == 16
    assert model.config.num_kv_heads == causal.config.num_kv_heads
    assert model.mask_id == causal.config.vocab_size
    assert model.tokenizer.digest == causal.tokenizer.digest
    assert model.sample(jax.random.key(0), 1, 2).shape == (1, 16)


def test_it_goes_out_in_the_layout_of_the_hub_and_comes_back(adapted, tmp_path):
    model = sdtt_jax.load(adapted)
    export_reference(model, tmp_path / "out")
    again = sdtt_jax.load(tmp_path / "out")
    assert (again.config.shift, again.mask_id) == (True, model.mask_id)
    x_t = np.full((1, 16), model.mask_id, np.int32)
    x_t[0, :2] = model.tokenizer.encode("in the")[:2]
    np.testing.assert_allclose(again.logits(x_t), model.logits(x_t), atol=1e-5)
    theirs, ours = (
        [t.encode("In the 7").tolist(), t.normalize] for t in (again.tokenizer, model.tokenizer)
    )
    assert theirs == ours


def test_a_denoiser_has_no_attention_to_open(adapted, tmp_path):
    """The steps were taken and opened nothing. A teacher that has begun so goes on."""
    with open_run(adapting(tmp_path, adapted), tmp_path / "run") as run:
        with pytest.raises(
            ConfigError, match=r"attention_annealing=2 opens .* is a denoiser already"
        ):
            check_found_elsewhere(run, STAGES)
        (run.workdir.teacher / "2").mkdir(parents=True)
        check_found_elsewhere(run, STAGES)


def test_attention_is_opened_step_by_step(adapted):
    lines = [json.loads(line) for line in (adapted / "metrics.jsonl").read_text().splitlines()]
    shares = [line["open_share"] for line in lines if line["stage"] == "teacher"]
    assert shares == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert [open_share(step, 4) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert open_share(0, 0) == 1.0


def test_training_starts_from_the_base(adapted, base):
    """Four steps of Adam move a parameter by little more than four times the learning rate."""
    teacher, causal = sdtt_jax.load(adapted / "teacher"), sdtt_jax.load(base)
    with open_run(adapting(adapted.parent, base), adapted) as run:
        rate = run.config.teacher.train.optimizer.learning_rate
    rows = causal.config.vocab_size
    before = np.asarray(causal.params["embed"]["embedding"])
    after = np.asarray(teacher.params["embed"]["embedding"])
    assert 0 < np.abs(after[:rows] - before[:rows]).max() < 8 * rate
    np.testing.assert_allclose(after[rows], before[:rows].mean(axis=0), atol=8 * rate)


def test_the_base_may_be_gone_when_the_teacher_is_delivered(adapted, base):
    """Oracle: the error of the base itself, for which no finished stage asks any more."""
    away = base.rename(base.with_name("away.gguf"))
    try:
        with open_run(adapting(adapted.parent, base), adapted) as run:
            run_stages(run, STAGES)
            run.delivered(run.workdir.round(1), run.denoiser, "evaluate")
            with pytest.raises(CheckpointError, match="no checkpoint at"):
                _ = run.base
    finally:
        away.rename(base)


def test_a_tokenizer_of_the_hub_is_that_of_the_base(tmp_path):
    config = run_config(small(tmp_path))
    with pytest.raises(ConfigError, match="go together: the tokenizer is that model's"):
        dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, kind="hub"))
    with pytest.raises(ConfigError, match="give one of them"):
        dataclasses.replace(config.teacher, checkpoint="a", init_from="b")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reference_tiny/student_hub.safetensors", r"teacher\.{field}=.* is neither of the"),
        ("gpt2_tiny", "no tokenizer"),
    ],
)
@pytest.mark.parametrize("field", ["init_from", "checkpoint"])
def test_a_base_that_cannot_be_one_is_refused(field, name, said, golden, tmp_path):
    """By the field that was given: of a checkpoint, the error advised to give it as one."""
    path = golden / name
    config = run_config(adapting(tmp_path, path))
    fields = {"init_from": "", "attention_annealing": 0, field: str(path)}
    config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, **fields))
    said = said.format(field=field)
    with (
        pytest.raises(UserError, match=said),
        open_run(config_dict(config), tmp_path / "run") as run,
    ):
        run_stages(run, ("data",))


@pytest.mark.slow
def test_the_english_run_goes_from_data_to_report_on_a_tiny_stand_in_for_smollm2(base, tmp_path):
    """Judge and baseline are the unchanged model that the teacher was made from."""
    config = english_smoke()
    corpus, root = tmp_path / "corpus.txt", tmp_path / "run"
    corpus.write_text(TEXT * 200)
    teacher = dataclasses.replace(config.teacher, init_from=str(base), init_layers=1)
    data = dataclasses.replace(config.data, corpus=str(corpus))
    judge = JudgeConfig(checkpoint=str(base))
    tiny = dataclasses.replace(config, teacher=teacher, data=data, judge=judge)
    with open_run(config_dict(tiny), root) as run:
        run_stages(run, (*STAGES[:2], "judge", "distill", "evaluate", "report"))
    first, last = sdtt_jax.load(root / "teacher"), sdtt_jax.load(root)
    assert first.config.num_layers == last.config.num_layers == 1
    assert (last.facts["round"], last.config.shift) == (2, True)
    assert params_digest(last.params) != params_digest(first.params)
    ours, causal = sdtt_jax.load(root / "judge"), sdtt_jax.load(base)
    assert params_digest(ours.params) == params_digest(causal.params)
    assert english().judge.checkpoint == english().teacher.init_from == "smollm2"

    results = json.loads((root / "results.json").read_text())
    # The teacher takes 32 steps.
    assert [record["dt"] for record in results["rounds"]] == [1 / 32, 2 / 32]
    for record in (results["teacher"], *results["rounds"]):
        assert {"2", "4"} <= record["steps"].keys()
        for value in (record["val_ppl"], *(at["gen_ppl"] for at in record["steps"].values())):
            assert 1 < value < np.inf
    assert results["baseline_ar"]["nfe"] == config.data.length
    assert "Round 2" in (root / "report.html").read_text()


def test_a_denoiser_of_the_family_is_a_teacher_as_it_is(adapted, tmp_path):
    """It takes any length, because it has no embeddings of positions."""
    export_reference(sdtt_jax.load(adapted), tmp_path / "hub")
    config = run_config(adapting(tmp_path, "a model"))
    path = str(tmp_path / "hub")
    teacher = dataclasses.replace(config.teacher, checkpoint=path, init_from="")
    data = dataclasses.replace(config.data, length=8)
    config = dataclasses.replace(config, teacher=teacher, data=data)
    with open_run(config_dict(config), tmp_path / "run") as run:
        run_stages(run, ("data", "teacher"))
    ours, theirs = (sdtt_jax.load(path) for path in (tmp_path / "run/teacher", adapted))
    assert (ours.config.length, ours.config.shift) == (8, True)
    np.testing.assert_array_equal(
        ours.params["final"]["scale"], np.asarray(theirs.params["final"]["scale"])
    )
