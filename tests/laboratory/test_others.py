"""Distillers that train networks, on a world. Oracles: the true denoiser's exact law, and that of counts.

What they do apart from training is tested in test_coupled.py and, for SDTT, in test_optimum.py.
"""

import dataclasses

import jax
import numpy as np
import pytest

from sdtt_jax.laboratory import others
from sdtt_jax.laboratory.coupled import CoupledStudentConfig
from sdtt_jax.laboratory.distillers import measure_distillers
from sdtt_jax.laboratory.others import (
    OthersConfig,
    StudentBench,
    law_of,
    noise_information,
    tables_of,
)
from sdtt_jax.laboratory.record import Truth, closed_form
from sdtt_jax.laboratory.sampled import sampled_measures
from sdtt_jax.laboratory.student import make_diffusion, table_params
from sdtt_jax.laboratory.world import World, reveal_sums, sample_distribution
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.ops.noise import LATENT
from tests.worlds import noisy_params

WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.1, 0.2), name="weather")
TRUTH = Truth.of(WORLD)
# Nearly always the first token: at one call, its true denoiser has an entropy of 0.34 nats.
SKEWED = World((0.9, 0.1), ((0.9, 0.1), (0.8, 0.2)), 3, (0.1, 0.2), name="skewed")
SIZES = CoupledStudentConfig(
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    noise=NoiseConfig(hidden_dim=64),
    batch_size=64,
    num_steps=150,
    num_samples=32_768,
    seed=1,
)
CONFIG = OthersConfig(
    num_layers=1,
    embed_dim=16,
    batch_size=64,
    num_steps=100,
    copy_steps=800,
    copy_rate=1e-2,
    learning_rate=1e-2,
    values=2,
    teacher_calls=3,
    layer=1,
)


@pytest.fixture(scope="module")
def bench():
    _, optima = closed_form(TRUTH, ("kl-bwd",), WORLD.dts, print)
    return StudentBench(TRUTH, (1,), SIZES, CONFIG, optima["kl-bwd"])


@pytest.fixture(scope="module")
def teacher():
    sums = reveal_sums(TRUTH.teacher)
    return {n: TRUTH.measures_of(sample_distribution(sums, int(n))) for n in ("1", "2")}


def test_the_start_is_the_true_denoiser(bench, teacher):
    law = law_of(tables_of(bench, bench.plain, bench.start), 2)
    assert TRUTH.measures_of(law) == pytest.approx(teacher["2"], abs=0.02)


def test_a_mixtures_law_is_that_of_its_counted_samples():
    """65,536 samples of a network without training; standard errors below 0.005."""
    latent = NoiseConfig(LATENT, num_values=CONFIG.values)
    sizes = dataclasses.replace(SIZES, noise=latent, num_samples=65_536)
    student = make_diffusion(WORLD, sizes, latent)
    params = noisy_params(student.denoiser.network, 2, spread=0.15)
    bench = StudentBench(TRUTH, (2,), sizes, CONFIG)
    exact = TRUTH.measures_of(law_of(tables_of(bench, student, params), 2))
    counted = sampled_measures(TRUTH, student, params, [2], sizes.draws, temperature=1.0)["2"]
    assert counted.pop("samples") == 65_536
    assert counted == pytest.approx(exact, abs=0.02)


def test_a_table_is_measured_without_noise():
    bench = StudentBench(TRUTH, (2,), SIZES, CONFIG)
    law = law_of(tables_of(bench, bench.plain, table_params(TRUTH.teacher)), 2)
    np.testing.assert_allclose(law, sample_distribution(reveal_sums(TRUTH.teacher), 2), rtol=1e-4)


def test_a_mixture_passes_below_the_factorised_teacher(bench, teacher):
    found = measure_distillers(("mixture",), bench)["mixture"]
    assert found["1"]["kl"] < 0.6 * teacher["1"]["kl"]
    assert found["1"]["kl_reverse"] < 0.6 * teacher["1"]["kl_reverse"]


def test_alpha_seeks_modes(bench, teacher):
    """The best law by direct search (BFGS over the six probabilities): entropy 0.13, reverse KL 3.57."""
    found = measure_distillers(("alpha",), bench)["alpha"]["1"]
    assert found["entropy"] == pytest.approx(0.13, abs=0.1)
    assert found["kl_reverse"] > 2.5
    assert teacher["1"]["entropy"] > 0.6


def test_masks_help_only_where_the_teachers_draws_depend_on_them(bench, teacher):
    measured = measure_distillers(("masks", "masks-uncoupled"), bench)
    free, coupled = measured["masks-uncoupled"]["1"], measured["masks"]["1"]
    assert coupled["kl"] < 0.7 * teacher["1"]["kl"]
    assert free["kl"] > 0.8 * teacher["1"]["kl"]
    assert coupled["noise_information"] > 10 * free["noise_information"]


def test_noise_that_a_network_does_not_see_says_nothing():
    student = make_diffusion(WORLD, SIZES, SIZES.noise)
    network = student.denoiser.network
    params = jax.jit(network.init_from)(noisy_params(network, 0), jax.random.key(0))
    found = noise_information(student, params, WORLD.length, jax.random.key(1))
    assert found == pytest.approx(0.0, abs=1e-5)


def test_the_discrepancy_has_a_gradient_and_is_measured(bench, monkeypatch):
    """Its gradient is traced and not computed; a training with it: tests/experiments/test_one_round.py.

    Oracle of the measures: the law of the start, which is returned as if it were trained.
    """
    start = bench.start
    law = law_of(tables_of(bench, bench.plain, start), 1)

    def traced(bench, _title, loss, params, context, _rate):
        batch = np.zeros((bench.config.batch_size, WORLD.length), np.int32)
        gradient = jax.grad(lambda params, key: loss(params, context, batch, key).total)
        found = jax.eval_shape(gradient, params, jax.random.key(0))
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, params)
        return params

    monkeypatch.setattr(others, "fit", traced)
    found = measure_distillers(("mmd",), bench)["mmd"]
    assert set(found) == {"1"}
    assert found["1"] == pytest.approx(TRUTH.measures_of(law), rel=1e-6)


def test_inverse_distillation_comes_to_its_teacher(bench):
    """From a student of the first world, 100 steps with the teacher of the other.

    Two tokens have at most log 2 = 0.693 nats each; training begins at 0.687, and the teacher has 0.34.
    """
    truth, config = Truth.of(SKEWED), dataclasses.replace(CONFIG, slow_rate=2e-4)
    other = dataclasses.replace(bench, truth=truth, config=config)
    vars(other)["start"] = bench.start  # a student of the first world
    own = measure_distillers(("idlm",), other)["idlm"]
    assert set(own) == {"1"}
    assert np.isfinite(list(own["1"].values())).all()
    assert own["1"]["entropy"] < 0.5
    assert own["1"]["kl"] < 0.3


def test_inverse_distillation_is_told_the_teachers_temperature(bench, monkeypatch):
    """Nothing is trained. What the temperature does to the losses: tests/distillation/test_idlm.py and
    test_coupled_idlm.py."""
    told = []

    def fit(_bench, _title, loss, begin, _context, _rate):
        told.append(loss)
        return begin

    for name in ("idlm_loss", "coupled_idlm_loss"):
        monkeypatch.setattr(others.objectives, name, lambda *given: given[-1].teacher_temperature)
    monkeypatch.setattr(others, "fit", fit)
    config = dataclasses.replace(CONFIG, teacher_temperature=32.0)
    hot = dataclasses.replace(bench, config=config)
    vars(hot).update(start={}, one_shot={})
    others.idlm_params(hot, 1)
    others.coupled_idlm_params(hot)
    assert told == [32.0, 32.0]


@pytest.fixture(scope="module")
def coupled(bench):
    """Measures of SDTT, a noise-coupled student, and the same student after inverse distillation."""
    train, trained = others.train_coupled, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            others, "train_coupled", lambda *given: trained.append(given) or train(*given)
        )
        measured = measure_distillers(("sdtt", "coupled", "coupled-idlm"), bench)
    assert len(trained) == 1, "both begin with the same training"
    return measured


def test_a_coupled_student_passes_below_the_factorised_teacher(coupled):
    """150 steps; 32,768 samples, standard error of KL below 0.005."""
    students = ("coupled", "coupled-drawn", "coupled-idlm", "coupled-idlm-drawn")
    assert set(coupled) == {"sdtt", *students}
    assert all(set(found) == {"1"} for found in coupled.values())
    assert coupled["sdtt"]["1"]["kl"] > 0.3
    assert coupled["coupled"]["1"]["kl"] < 0.1
    assert coupled["coupled"]["1"]["tv"] < 0.5 * coupled["sdtt"]["1"]["tv"]


def test_inverse_distillation_brings_a_noise_coupled_student_nearer_to_the_chain(coupled):
    """By 100 steps; 32,768 samples, standard error of either KL below 0.005."""
    before, after = (coupled[f"{name}-drawn"]["1"] for name in ("coupled", "coupled-idlm"))
    for measure in ("kl", "kl_reverse", "tv"):
        assert after[measure] < 0.9 * before[measure], measure
