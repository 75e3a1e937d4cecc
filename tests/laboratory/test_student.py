"""Training on an enumerated world. Oracles: the exact sums of `optimum` and `world`."""

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
from sdtt_jax.laboratory.optimum import (
    OPTIMA,
    expected_divergence,
    mean_over_masked,
    round_optimum,
)
from sdtt_jax.laboratory.student import (
    StudentConfig,
    make_diffusion,
    predictions,
    sample_sequences,
    table_params,
)
from sdtt_jax.laboratory.world import (
    World,
    all_states,
    finished_states,
    reveal_sums,
    sample_distribution,
    state_probabilities,
    strides,
    true_denoiser,
)

WORLD = World((0.6, 0.3, 0.1), ((0.7, 0.2, 0.1), (0.1, 0.3, 0.6), (0.4, 0.1, 0.5)), 3, (0.4,))
TINY = StudentConfig(num_layers=1, embed_dim=8, num_heads=2, copy_steps=1, steps_per_round=1)


DIFFUSION = make_diffusion(WORLD, TINY)


@pytest.fixture(scope="module")
def teacher() -> dict[str, jax.Array]:
    """The true denoiser's table."""
    return table_params(true_denoiser(WORLD)[0])


def test_a_table_predicts_what_it_holds(teacher: dict[str, jax.Array]) -> None:
    expected, _ = true_denoiser(WORLD)
    np.testing.assert_allclose(predictions(DIFFUSION, teacher, WORLD), expected, atol=1e-6)
    states = jnp.asarray(all_states(3, 3), jnp.int32)
    hidden = DIFFUSION.denoiser.hidden(teacher, states)
    logits = DIFFUSION.denoiser.logits(teacher, hidden)
    assert logits.shape == (64, 3, 4)
    assert float(logits[..., 3:].max()) == -1e6


def test_sequences_are_a_pure_function_of_the_step_and_follow_the_chain() -> None:
    """40,000 sequences: standard error of a frequency at most 0.0025; bound 5 standard errors; seed 1."""
    tokens = sample_sequences(WORLD, 1, 0, 7, 40_000)
    np.testing.assert_array_equal(tokens, sample_sequences(WORLD, 1, 0, 7, 40_000))
    assert (tokens[:100] != sample_sequences(WORLD, 1, 0, 8, 40_000)[:100]).any()
    _, evidence = true_denoiser(WORLD)
    numbers = tokens @ strides(3, 3)
    frequencies = np.bincount(numbers, minlength=64)[finished_states(WORLD)] / 40_000
    expected = evidence[finished_states(WORLD)]
    np.testing.assert_allclose(frequencies, expected, atol=0.0125)


@pytest.mark.parametrize("divergence", sorted(OPTIMA))
def test_the_loss_that_trains_is_the_exact_expected_divergence(
    teacher: dict[str, jax.Array], divergence: str
) -> None:
    """Masking, trajectories, targets and divergence, averaged over draws, against exact sums.

    The student is the optimum of another divergence, as a table. 64 batches of 2048 sequences; the
    bound is 5 standard errors of the mean over batches, plus 1e-3 relative for the schedule's
    alpha_1 and float32. Seed 2.
    """
    true, evidence = true_denoiser(WORLD)
    other = "kl-fwd" if divergence == "kl-bwd" else "kl-bwd"
    student = round_optimum(true, 0.4, other)
    losses = expected_divergence(student, true, 0.4, divergence)
    probabilities = state_probabilities(WORLD, evidence)
    exact = mean_over_masked(losses, probabilities, 3)
    if divergence == "mse":
        exact /= 4  # the training loss is the mean over the entries, MASK among them

    table = table_params(student)

    @jax.jit
    def batch_loss(x0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return distillation_terms(
            DIFFUSION,
            table,
            teacher,
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


@pytest.mark.parametrize("num_steps", [2, 5])
def test_the_sampler_draws_from_the_exact_distribution(
    teacher: dict[str, jax.Array], num_steps: int
) -> None:
    """50,000 sequences from a true denoiser's table, 27 outcomes; bound 5 standard errors; seed 3.

    The grid ends at 1e-5 rather than 0, which moves less than 1e-4 of the probability.
    """
    exact = sample_distribution(reveal_sums(true_denoiser(WORLD)[0]), num_steps)
    state, _ = jax.jit(
        lambda key: sample(
            MaskedDiffusion(DIFFUSION.denoiser, make_schedule()),
            teacher,
            key,
            prior_sample(50_000, 3, DIFFUSION.denoiser.mask_id),
            SamplerConfig(num_steps=num_steps),
        )
    )(jax.random.key(3))
    numbers = np.asarray(state.x) @ strides(3, 3)
    frequencies = np.bincount(numbers, minlength=64)[finished_states(WORLD)] / 50_000
    error = np.sqrt(exact * (1 - exact) / 50_000)
    assert frequencies.sum() == pytest.approx(1)
    assert (np.abs(frequencies - exact) < 5 * error + 1e-4).all()


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="steps_per_round must be positive"):
        StudentConfig(steps_per_round=0)
