"""Training on an enumerated world. Oracles: the exact sums of exact_round and exact_world."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.loss import distillation_terms
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.laboratory import optimum as exact_round
from sdtt_jax.laboratory import student as exact_student
from sdtt_jax.laboratory import world as exact_world
from sdtt_jax.laboratory.student import Laboratory, StudentConfig, sample_sequences
from sdtt_jax.laboratory.world import World

WORLD = World((0.6, 0.3, 0.1), ((0.7, 0.2, 0.1), (0.1, 0.3, 0.6), (0.4, 0.1, 0.5)), 3, (0.4,))
TINY = StudentConfig(num_layers=1, embed_dim=8, num_heads=2, copy_steps=1, steps_per_round=1)


class Silent:
    """Progress that nobody watches."""

    def update(self, step: int, values: object = None) -> None:
        pass


def silent(title: str, num_steps: int) -> contextlib.AbstractContextManager:
    del title, num_steps
    return contextlib.nullcontext(Silent())


@pytest.fixture(scope="module")
def laboratory() -> Laboratory:
    return Laboratory(WORLD, TINY, silent)


def test_a_table_predicts_what_it_holds(laboratory: Laboratory) -> None:
    teacher, _ = exact_world.true_denoiser(WORLD)
    np.testing.assert_allclose(laboratory.predictions(laboratory.table), teacher, atol=1e-6)
    states = jnp.asarray(exact_world.all_states(3, 3), jnp.int32)
    hidden = laboratory.denoiser.hidden(laboratory.table, states)
    logits = laboratory.denoiser.logits(laboratory.table, hidden)
    assert logits.shape == (64, 3, 4)
    assert float(logits[..., 3:].max()) == -1e6


def test_sequences_are_a_pure_function_of_the_step_and_follow_the_chain() -> None:
    """40,000 sequences: standard error of a frequency at most 0.0025; bound 5 of them; seed 1."""
    tokens = sample_sequences(WORLD, 1, 0, 7, 40_000)
    np.testing.assert_array_equal(tokens, sample_sequences(WORLD, 1, 0, 7, 40_000))
    assert (tokens[:100] != sample_sequences(WORLD, 1, 0, 8, 40_000)[:100]).any()
    _, evidence = exact_world.true_denoiser(WORLD)
    numbers = tokens @ exact_world.strides(3, 3)
    found = np.bincount(numbers, minlength=64)[exact_world.finished_states(WORLD)] / 40_000
    expected = evidence[exact_world.finished_states(WORLD)]
    np.testing.assert_allclose(found, expected, atol=0.0125)


@pytest.mark.parametrize("divergence", sorted(exact_round.OPTIMA))
def test_the_loss_that_trains_is_the_exact_expected_divergence(
    laboratory: Laboratory, divergence: str
) -> None:
    """Masking, trajectories, targets and divergence, averaged over draws, against exact sums.

    The student is the optimum of another divergence, as a table. 64 batches of 2048 sequences; the
    bound is 5 standard errors of the mean over batches, plus 1e-3 relative for the schedule's
    alpha_1 and float32. Seed 2.
    """
    teacher, evidence = exact_world.true_denoiser(WORLD)
    other = "kl-fwd" if divergence == "kl-bwd" else "kl-bwd"
    student = exact_round.round_optimum(teacher, 0.4, other)
    losses = exact_round.expected_divergence(student, teacher, 0.4, divergence)
    probabilities = exact_world.state_probabilities(WORLD, evidence)
    exact = exact_round.mean_over_masked(losses, probabilities, 3)
    if divergence == "mse":
        exact /= 4  # the training loss is the mean over the entries, MASK among them

    table = exact_student.table_params(student)

    @jax.jit
    def batch_loss(x0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return distillation_terms(
            laboratory.diffusion,
            table,
            laboratory.table,
            x0,
            jnp.float32(0.4),
            key,
            DistillConfig(divergence=divergence),
        )

    pairs = []
    for step in range(64):
        x0 = jnp.asarray(sample_sequences(WORLD, 2, 0, step, 2048))
        total, weight = batch_loss(x0, jax.random.fold_in(jax.random.key(2), step))
        pairs.append(float(total / weight))
    error = np.std(pairs) / np.sqrt(len(pairs))
    assert error < 0.02 * exact
    assert np.mean(pairs) == pytest.approx(exact, abs=5 * error + 1e-3 * exact)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_sampler_draws_from_the_exact_distribution(
    laboratory: Laboratory, num_steps: int
) -> None:
    """50,000 sequences from a true denoiser's table, 27 outcomes; bound 5 standard errors; seed 3.

    The grid ends at 1e-5 rather than 0, which moves less than 1e-4 of the probability.
    """
    teacher, _ = exact_world.true_denoiser(WORLD)
    exact = exact_world.sample_distribution(exact_world.reveal_sums(teacher), num_steps)
    state, _ = jax.jit(
        lambda key: sample(
            MaskedDiffusion(laboratory.denoiser, make_schedule()),
            laboratory.table,
            key,
            prior_sample(50_000, 3, laboratory.denoiser.mask_id),
            SamplerConfig(num_steps=num_steps),
        )
    )(jax.random.key(3))
    numbers = np.asarray(state.x) @ exact_world.strides(3, 3)
    found = np.bincount(numbers, minlength=64)[exact_world.finished_states(WORLD)] / 50_000
    error = np.sqrt(exact * (1 - exact) / 50_000)
    assert found.sum() == pytest.approx(1)
    assert (np.abs(found - exact) < 5 * error + 1e-4).all()


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="steps_per_round must be positive"):
        StudentConfig(steps_per_round=0)
