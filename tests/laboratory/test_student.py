"""Training on an enumerated world. Oracles: the exact sums of `optimum` and `world`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.distillation.loss import (
    distillation_batch,
    distillation_terms,
    divergence_terms,
)
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.targets import teacher_targets
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
from tests.diffusion.test_sampler import exact_texts

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
    denoiser = DIFFUSION.denoiser
    logits = jax.jit(lambda table, x: denoiser.logits(table, denoiser.hidden(table, x)))(
        teacher, all_states(3, 3).astype(np.int32)
    )
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


def other_than(divergence: str) -> str:
    """The divergence whose optimum is the student of `divergence`."""
    return "kl-fwd" if divergence == "kl-bwd" else "kl-bwd"


@pytest.fixture(scope="module")
def losses(teacher: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """The loss of each of 64 batches of 2048 sequences, by divergence. Seed 2.

    All in one program: masks and targets do not depend on the divergence, so only the first is the training's
    whole function, and the others share its parts.
    """
    first, *rest = sorted(OPTIMA)
    true, dt, config = true_denoiser(WORLD)[0], jnp.float32(0.4), DistillConfig(divergence=first)
    tables = {name: table_params(round_optimum(true, 0.4, name)) for name in ("kl-bwd", "kl-fwd")}

    @jax.jit
    def batch_losses(x0: jax.Array, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        table = tables[other_than(first)]
        found = {first: distillation_terms(DIFFUSION, table, teacher, x0, dt, key, config)}
        t, x_t, key = distillation_batch(DIFFUSION, x0, key, config)
        keys, sigma = jax.random.split(key, config.num_trajectories), DIFFUSION.schedule.sigma(t)
        targets = teacher_targets(DIFFUSION, teacher, keys, x_t, t, dt, config)
        for name in rest:
            table = tables[other_than(name)]
            terms = divergence_terms(DIFFUSION, table, teacher, x_t, sigma, targets, name)
            found[name] = terms
        return found

    batches = []
    for step in range(64):
        x0 = jnp.asarray(sample_sequences(WORLD, 2, 0, step, 2048))
        terms = jax.device_get(batch_losses(x0, jax.random.fold_in(jax.random.key(2), step)))
        batches.append({name: total / weight for name, (total, weight) in terms.items()})
    return {name: np.array([batch[name] for batch in batches]) for name in OPTIMA}


@pytest.mark.parametrize("divergence", sorted(OPTIMA))
def test_the_loss_that_trains_is_the_exact_expected_divergence(
    losses: dict[str, np.ndarray], divergence: str
) -> None:
    """Masking, trajectories, targets and divergence, averaged over draws, against exact sums.

    The student is the optimum of another divergence, as a table. The bound is 5 standard errors of the mean
    over batches, plus 1e-3 relative for the schedule's alpha_1 and float32.
    """
    true, evidence = true_denoiser(WORLD)
    student = round_optimum(true, 0.4, other_than(divergence))
    expected = expected_divergence(student, true, 0.4, divergence)
    exact = mean_over_masked(expected, state_probabilities(WORLD, evidence), 3)
    if divergence == "mse":
        exact /= 4  # the training loss is the mean over the entries, MASK among them
    found = losses[divergence]
    error = found.std() / np.sqrt(len(found))
    assert error < 0.02 * exact
    assert found.mean() == pytest.approx(exact, abs=5 * error + 1e-3 * exact)


@pytest.mark.parametrize("num_steps", [2, 5])
def test_the_exact_distribution_of_samples_is_the_sum_over_paths_of_states(num_steps: int) -> None:
    """The sum that the sampler is compared with in tests/diffusion/test_sampler.py, state after state.

    There the grid ends at 1e-5 rather than 0, which moves less than 1e-4 of the probability.
    """
    table, _ = true_denoiser(WORLD)
    found = sample_distribution(reveal_sums(table), num_steps)
    np.testing.assert_allclose(found, exact_texts(table, SamplerConfig(num_steps)), atol=1e-4)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="steps_per_round must be positive"):
        StudentConfig(steps_per_round=0)
