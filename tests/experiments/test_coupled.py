"""The noise-coupled student in a run. Oracles: the unbroken run, the sampler, and the pool made again."""

import dataclasses
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

import sdtt_jax
from experiments.settings import config_dict, run_config
from experiments.stages import coupled as coupled_stage
from experiments.stages import few_calls
from experiments.stages import training as training_stages
from experiments.stages.coupled import open_pool, stored_batch, teacher_params
from experiments.stages.few_calls import enclosed, matched
from experiments.stages.replay import replay
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import load_params, save_params
from sdtt_jax.data.loader import shuffled
from sdtt_jax.distillation.trajectories import noise_of, trajectory_end
from sdtt_jax.errors import ConfigError, MismatchError
from sdtt_jax.evaluation.judge import ReadTexts, Scores
from sdtt_jax.evaluation.suites.generation import Judged
from sdtt_jax.formats import read_json
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.keys import purpose_key
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.training import loop
from tests.experiments.small import small
from tests.forking import run_module
from tests.training import toy
from tests.worlds import noisy_params

STAGES = ("data", "teacher", "distill")


def coupled(folder, **fields):
    """Two rounds of four steps with soft targets, on 16 trajectories; their mode has no use for the grid."""
    config = run_config(small(folder))
    values = {"num_calls": 4, "num_distill_calls": 2, "num_rounds": 2, "num_trajectories": 16}
    values |= {"soft_weight": 0.5, "hindsight": False, "time_grid": "cosine"}
    stage = dataclasses.replace(
        config.coupled,
        train=dataclasses.replace(config.distill.train, num_steps=4),
        **values | fields,
    )
    return config_dict(dataclasses.replace(config, distillers=("coupled",), coupled=stage))


def make_teacher(run, seed):
    """Data, and a teacher with random parameters, since its training is of no matter here."""
    run_stages(run, STAGES[:1])
    params = noisy_params(run.denoiser, seed)
    run.deliver(run.workdir.teacher, run.denoiser, params, stage="teacher")


@pytest.fixture(scope="module")
def unbroken(compiled_once, tmp_path_factory):  # noqa: ARG001
    folder = tmp_path_factory.mktemp("coupled")
    with open_run(coupled(folder), folder / "run") as run:
        make_teacher(run, 0)
        run_stages(run, STAGES)
    return folder


def digest(folder, number=2):
    return params_digest(load_params(folder / "coupled" / f"{number:02d}" / "final")[0])


def test_a_pool_is_the_teachers_trajectories_and_each_round_has_its_own(unbroken):
    with open_run(coupled(unbroken), unbroken / "run") as run:
        first, second = (open_pool(run, n, teacher_params(run, n)) for n in (1, 2))
        student = sdtt_jax.MaskedDiffusion(run.coupled, run.diffusion.schedule)
        key = purpose_key(run.config.seed, "coupled.noise", 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(16))
        params = run.delivered(run.workdir.teacher, run.denoiser, "a test")
        noise = jax.jit(noise_of, static_argnums=(0, 2))(student, keys, run.config.data.length)
        one, other = (pool.batch(1, 0, 16) for pool in (first, second))
        np.testing.assert_array_equal(one["tokens"], written(run, params, noise)[one["index"]])
    assert first.facts["teacher"] != second.facts["teacher"]
    assert (one["tokens"] != other["tokens"]).any()


def written(run, params, noise):
    """The texts that the first round's teacher writes from noise."""
    end = jax.jit(trajectory_end, static_argnums=(0, 3))
    return end(run.diffusion, params, noise, run.config.coupled.trajectory(1))


def test_stopped_in_a_round_it_ends_in_the_same_bits(unbroken, tmp_path, monkeypatch):
    """Its teacher, which pool, student and soft targets need, is loaded once, and again on resuming."""
    config, root = coupled(unbroken), tmp_path / "run"
    shutil.copytree(unbroken / "run", root)
    shutil.rmtree(root / "coupled" / "02")
    train, loaded, load = loop.train, [], coupled_stage.teacher_params

    def stopped(state, step_fn, batch_at, key, config, **fields):
        train(state, step_fn, batch_at, key, toy.until(config, 3), **fields)
        raise loop.Interrupted(3, "a test")

    def loading(run, number):
        loaded.append(number)
        return load(run, number)

    monkeypatch.setattr(coupled_stage, "teacher_params", loading)
    with monkeypatch.context() as patch:
        patch.setattr(training_stages, "train", stopped)
        with open_run(config, root) as run, pytest.raises(loop.Interrupted):
            run_stages(run, STAGES)
    assert loaded == [2]
    with open_run(config, root) as run:
        run_stages(run, STAGES)
    assert loaded == [2, 2]
    assert digest(root) == digest(unbroken / "run")


def one_round(unbroken, folder, **fields):
    """One round with the teacher of the unbroken run, by default on real texts, in hindsight."""
    values = {"hindsight": True, "num_distill_calls": 0, "num_rounds": 1, "soft_weight": 0.0}
    config = coupled(folder, **values | fields)
    config.teacher.checkpoint = str(unbroken / "run" / "teacher")
    return config


def are_real(run, texts):
    known = {text.tobytes() for text in run.train_split.batch(0, 0, len(run.train_split))}
    return all(np.asarray(text).tobytes() in known for text in texts)


def test_a_pool_in_hindsight_has_real_texts_from_their_noise(unbroken, tmp_path, monkeypatch):
    """Oracle: the trajectory from the noise that is stored. Stopped when all is made, none is made again."""
    stop = mock.Mock(side_effect=KeyboardInterrupt)
    with open_run(one_round(unbroken, tmp_path), tmp_path / "run") as run:
        run_stages(run, STAGES[:2])
        params = teacher_params(run, 1)
        saving = mock.patch.object(coupled_stage, "save_params", stop)
        with saving, pytest.raises(KeyboardInterrupt):
            open_pool(run, 1, params)
        monkeypatch.setattr(coupled_stage, "_made", stop)
        made, read = (open_pool(run, 1, params).batch(1, 0, 16) for _ in range(2))
        jax.tree.map(np.testing.assert_array_equal, made, read)
        assert are_real(run, read["tokens"])
        np.testing.assert_array_equal(written(run, params, read["noise"]), read["tokens"])


def test_in_hindsight_without_a_pool_each_step_infers_the_noise_of_real_texts(
    unbroken, tmp_path, capsys
):
    """Oracle: a step taken again; that the teacher writes a text from noise in hindsight is tested above."""
    config = one_round(unbroken, tmp_path, num_trajectories=0)
    with open_run(config, tmp_path / "run") as run:
        run_stages(run, STAGES)
        replay(run, "coupled/1@3")
        assert "the same bits in all" in capsys.readouterr().out
        batch = open_pool(run, 1, teacher_params(run, 1)).batch(1, 0, 8)
        assert are_real(run, batch["tokens"])
        assert "noise" not in batch


@pytest.mark.parametrize("hindsight", [False, True])
def test_a_student_with_several_masks_is_trained_stored_and_sampled(
    unbroken, tmp_path, capsys, hindsight
):
    """Oracles: a step taken again, the shape of a pool's noise, and texts of equal and other keys."""
    masks = NoiseConfig("masks", num_values=3)
    fields = {"hindsight": hindsight, "independent": hindsight, "noise": masks}
    config = one_round(unbroken, tmp_path, **fields)
    with open_run(config, tmp_path / "run") as run:
        run_stages(run, STAGES)
        replay(run, "coupled/1@3")
        batch = open_pool(run, 1, teacher_params(run, 1)).batch(1, 0, 8)
    assert "the same bits in all" in capsys.readouterr().out
    assert ("noise" in batch) == hindsight
    if hindsight:
        assert batch["noise"].token.shape == (8, run.config.data.length, 3)
    model = sdtt_jax.load(tmp_path / "run" / "coupled")
    texts = [model.sample(jax.random.key(seed), 4, 2) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(texts[0], texts[1])
    assert (texts[0] != texts[2]).any()


def test_more_masks_than_tokens_are_refused_before_a_teacher_is_trained(tmp_path):
    masks = {"hindsight": False, "num_distill_calls": 0, "num_rounds": 1, "soft_weight": 0.0}
    config = coupled(tmp_path, **masks, noise=NoiseConfig("masks", num_values=99))
    said = r"num_values=99 is more masks than there are tokens \((\d+)\); take at most \1,"
    refused = pytest.raises(ConfigError, match=said)
    with open_run(config, tmp_path / "run") as run, refused:
        run_stages(run, STAGES)
    assert not (tmp_path / "run" / "teacher").exists()
    run.config.coupled.check_vocabulary(99)


def test_a_step_of_a_round_is_taken_again(unbroken, capsys):
    with open_run(coupled(unbroken), unbroken / "run") as run:
        replay(run, "coupled/2@3")
        said = capsys.readouterr().out
        with pytest.raises(ConfigError, match="coupled/3: rounds are 1 to 2"):
            replay(run, "coupled/3")
    assert "from the state after step 2, step 3 twice" in said
    assert "the same bits in all" in said


def test_it_is_loaded_sampled_and_exported_with_its_noise_network(unbroken, tmp_path):
    model = sdtt_jax.load(unbroken / "run" / "coupled")
    assert model.facts["stage"] == "coupled"
    assert model.facts["round"] == 2
    options = {"temperature": 0.0, "mode": "first-hitting"}
    texts = [model.sample(jax.random.key(seed), 4, 1, **options) for seed in (0, 0)]
    np.testing.assert_array_equal(texts[0], texts[1])
    with pytest.raises(MismatchError, match="for which the reference's format has no"):
        export_reference(model, tmp_path / "reference")
    export_orbax(model, tmp_path / "own")
    again = sdtt_jax.load(tmp_path / "own")
    assert params_digest(again.params) == params_digest(model.params)
    assert again.denoiser == model.denoiser


def judged_texts(distinct, nats):
    """Four texts of eight tokens, `distinct` of them different and equally frequent, at `nats` per token."""
    tokens = np.tile(np.arange(8) % distinct, (4, 1)).astype(np.int32)
    reading = ReadTexts(list(tokens), list(tokens), np.zeros(4, int), {}, np.zeros(4, int))
    return Judged(tokens, np.ones(4), reading, Scores(np.full(4, 8 * nats), np.full(4, 8), None))


def test_student_and_teacher_are_measured_at_the_entropy_of_real_text():
    """Oracle: the point half-way between texts of constant perplexity and known entropy, by hand."""
    texts = {
        "argmax": judged_texts(1, 1.0),
        "drawn": judged_texts(2, 2.0),
        "teacher": judged_texts(2, 3.0),
        "teacher_cool": judged_texts(1, 2.5),
    }
    found = matched(texts, np.log(2) / 2, seed=0)
    student, teacher = found["matched"], found["teacher_matched"]
    assert student["gen_ppl"] == pytest.approx(np.exp(1.5))
    assert teacher["gen_ppl"] == pytest.approx(np.exp(2.75))
    assert (student["temperature"], teacher["temperature"]) == pytest.approx((0.5, 0.95))
    assert student["entropy"] == teacher["entropy"] == pytest.approx(np.log(2) / 2)
    ends = student["log_ratio"], student["low"], student["high"]
    assert ends == pytest.approx((-1.25, -1.25, -1.25))
    beyond = matched(texts, 5.0, seed=0)["matched"]
    assert beyond["gen_ppl"] == pytest.approx(np.exp(2.0))
    assert beyond["entropy"] == pytest.approx(np.log(2))


def test_a_student_without_enough_variety_is_measured_at_a_higher_temperature():
    """Oracle: three points by hand, of which the upper two enclose the entropy."""
    texts = {
        "argmax": judged_texts(1, 1.0),
        "drawn": judged_texts(2, 2.0),
        "warm": judged_texts(4, 4.0),
        "teacher": judged_texts(2, 3.0),
        "teacher_warm": judged_texts(4, 3.0),
    }
    found = matched(texts, 1.5 * np.log(2), seed=0)["matched"]
    assert found["gen_ppl"] == pytest.approx(np.exp(3.0))
    assert found["temperature"] == pytest.approx(1.15)


@pytest.mark.parametrize(
    ("entropy", "written"),
    [
        (1.0, ["teacher_cool", "teacher"]),
        (1.19, ["teacher_cool", "teacher", "teacher_warm"]),  # one standard error below the second
        (1.35, ["teacher", "teacher_warm", "teacher_hot"]),
        (3.0, ["teacher", "teacher_warm", "teacher_hot"]),  # beyond the warmest
    ],
)
def test_temperatures_are_written_until_they_enclose_an_entropy(monkeypatch, entropy, written):
    """Oracle: by hand; 100 texts have the entropy of their temperature ± 0.1: a standard error of 0.01."""
    temperatures = {"teacher_cool": 0.9, "teacher": 1.2, "teacher_warm": 1.36, "teacher_hot": 1.5}
    spread = np.array([0.1, -0.1] * 50) * np.sqrt(0.99)
    monkeypatch.setattr(few_calls, "text_columns", lambda way: (temperatures[way.tokens] + spread,))
    found = enclosed(
        lambda way, _: Judged(way, np.ones(1), None, None), temperatures, ["teacher"], entropy
    )
    assert list(found) == written


def test_a_batch_of_a_pool_draws_its_order_once(monkeypatch):
    """Once for all stored arrays, so that the rows of one trajectory stay together."""
    drawn = []

    def counted(*given):
        drawn.append(given)
        return shuffled(*given)

    monkeypatch.setattr(coupled_stage, "shuffled", counted)
    rows = {"tokens": np.arange(8)[:, None], "noise": np.arange(8) * 10}
    batch = stored_batch(rows, make_mesh(MeshConfig(), jax.devices()[:1]), 1, 0, 4)
    assert len(drawn) == 1
    np.testing.assert_array_equal(batch["tokens"][:, 0], batch["index"])
    np.testing.assert_array_equal(batch["noise"], batch["index"] * 10)


def test_a_pool_of_another_teacher_is_refused(unbroken, tmp_path):
    """A pool of another run, for another round and with another teacher."""
    config = coupled(tmp_path, pool=str(unbroken / "run" / "coupled" / "02" / "pool"))
    with open_run(config, tmp_path / "run") as run:
        make_teacher(run, 1)
        with pytest.raises(MismatchError, match="trajectories of another teacher") as caught:
            run_stages(run, ("distill",))
    assert "round: 2 -> 1" in str(caught.value)
    assert "teacher: " in str(caught.value)


def test_a_pool_says_of_its_sampler_what_earlier_versions_said(unbroken):
    """What a pool was made with is compared word for word: with one more field, no old run could go on."""
    _, facts = load_params(unbroken / "run" / "coupled" / "01" / "pool")
    known = {"num_steps", "time_grid", "final_denoise", "mode", "temperature", "top_k", "top_p"}
    assert (set(facts["sampler"]), facts["sampler"]["time_grid"]) == (known, "cosine")


@pytest.mark.parametrize("fact", ["tokenizer", "random"])
def test_a_pool_of_another_tokenizer_or_generator_is_refused(unbroken, tmp_path, fact, monkeypatch):
    """Under other flags its noise is not that of its texts; a pool that names none is of JAX's default."""
    shutil.copytree(unbroken / "run", tmp_path / "run")
    pool = tmp_path / "run" / "coupled" / "01" / "pool"
    tokens, facts = load_params(pool)
    shutil.rmtree(pool)
    save_params(pool, tokens, facts | {fact: "another"})
    with open_run(coupled(unbroken), tmp_path / "run") as run:
        with pytest.raises(MismatchError, match=rf"{fact}: '?another'? -> "):
            open_pool(run, 1, teacher_params(run, 1))
        monkeypatch.setattr(coupled_stage, "unusual_generator", lambda: {"random": "another"})
        with pytest.raises(MismatchError, match=r"random: 'key<fry>, .*' -> 'another'"):
            open_pool(run, 2, teacher_params(run, 2))


def test_a_pool_that_is_not_there_and_a_teacher_that_sees_noise_are_refused(unbroken, tmp_path):
    config = coupled(unbroken, pool="nowhere")
    refused = pytest.raises(ConfigError, match=r"config\.coupled\.pool=nowhere is not a stored")
    with open_run(config, tmp_path / "run") as run, refused:
        training_stages.check_found_elsewhere(run, ["distill"])
    config = coupled(unbroken)
    config.teacher.checkpoint = str(unbroken / "run" / "coupled")
    refused = pytest.raises(ConfigError, match=r"is a coupled model; .* must be a denoiser")
    with open_run(config, tmp_path / "other") as run, refused:
        training_stages.train_teacher(run)


def test_a_likelihood_is_refused(unbroken):
    model = sdtt_jax.load(unbroken / "run" / "coupled" / "01")
    with pytest.raises(ConfigError, match="a function of its noise and has no likelihood"):
        model.score(np.zeros((2, 16), np.int32), jax.random.key(0))


def test_a_student_without_likelihood_is_inspected_all_the_same(unbroken, tmp_path):
    """Oracle: the sizes that the round delivered."""
    found, checkpoint = tmp_path / "found.json", unbroken / "run" / "coupled" / "01"
    flags = [f"--checkpoint={checkpoint}", f"--output={found}"]
    done = run_module("experiments.inspect", flags)
    assert (done.status, "function of its noise" in done.stdout) == (0, True), done.stderr
    assert read_json(found)["config"] == load_params(checkpoint / "final")[1]["model"]


# Trajectories are made in each step: three rounds of 8 * 10**6 steps of 128.
THREE_ROUNDS = {"num_trajectories": 0, "num_rounds": 3, "num_distill_calls": 2}
THREE_ROUNDS["train"] = {"num_steps": 8 * 10**6, "batch_size": 128}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"distillers": ("coupled", "gumbel")}, "distillers='gumbel'"),
        ({"distillers": ()}, "distillers"),
        ({"coupled": {"calls": (4, 2)}}, "calls"),
        ({"coupled": {"calls": (0, 2)}}, "calls must be positive, not 0"),
        ({"coupled": {"num_trajectories": 2**31}}, r"must be below 2\*\*31"),
        ({"coupled": THREE_ROUNDS}, "num_rounds .* = 3072000000"),
        ({"coupled": {"noise": {"kind": "gumbel"}}}, "kind='gumbel'"),
        ({"coupled": {"noise": {"kind": "latent"}}}, "one value for a whole text"),
        (
            {"coupled": {"noise": {"kind": "masks", "num_values": 2**31}, "independent": True}},
            r"num_values=2147483648 must be below 2\*\*31",
        ),
        (
            {"coupled": {"noise": {"kind": "masks"}, "num_distill_calls": 2, "num_calls": 4}},
            'kind="masks" needs num_distill_calls=0, not 2',
        ),
        (
            {"distillers": ("coupled", "coupled_idlm"), "coupled": {"noise": {"kind": "masks"}}},
            "'coupled_idlm' starts from a student whose noise determines its tokens",
        ),
        (
            {"distillers": ("coupled", "coupled_idlm"), "coupled": {"independent": True}},
            "'coupled_idlm' starts from a student whose noise determines its tokens",
        ),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        run_config(fields)
