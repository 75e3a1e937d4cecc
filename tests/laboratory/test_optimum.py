"""The optimum of a round. Oracles: brute-force minimisation, enumeration and midpoint sums."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, special

from sdtt_jax.errors import ConfigError
from sdtt_jax.laboratory.optimum import (
    DIVERGENCES,
    OPTIMA,
    expected_divergence,
    mean_kl,
    mean_over_masked,
    round_optimum,
    subset_weights,
)
from sdtt_jax.laboratory.world import (
    World,
    all_states,
    state_probabilities,
    sticky_world,
    strides,
    true_denoiser,
)

WORLD = World((0.5, 0.3, 0.2), ((0.6, 0.3, 0.1), (0.15, 0.25, 0.6), (0.4, 0.05, 0.55)), 3, (0.25,))
ALL = sorted(OPTIMA)


@pytest.mark.parametrize("dt", [1 / 48, 0.3, 1.0])
@pytest.mark.parametrize("masked", [1, 3, 4])
def test_subset_weights_are_the_integral_over_time(masked: int, dt: float) -> None:
    """Oracle: 200,000 midpoints of t with the density of t given m masked positions of 4."""
    t = (np.arange(200_000) + 0.5) / 200_000
    density = t**masked * (1 - t) ** (4 - masked)
    reveal = np.minimum(1, dt / t)
    expected = [
        (density * reveal**j * (1 - reveal) ** (masked - j)).mean() / density.mean()
        for j in range(masked + 1)
    ]
    weights = subset_weights(4, masked, dt)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    total = sum(math.comb(masked, j) * w for j, w in enumerate(weights))
    assert total == pytest.approx(1, abs=1e-12)


def targets_by_enumeration(teacher: np.ndarray, state: tuple[int, ...], position: int, dt: float):
    """Every outcome of the first teacher step at one state: (weights, targets)."""
    mask, length = teacher.shape[2], teacher.shape[1]
    stride = strides(mask, length)
    number = int(np.dot(state, stride))
    masked = [i for i, token in enumerate(state) if token == mask]
    by_size = subset_weights(length, len(masked), dt)
    weights, targets = [], []
    for choice in itertools.product(range(mask + 1), repeat=len(masked)):
        revealed = [(i, v) for i, v in zip(masked, choice, strict=True) if v != mask]
        probability = by_size[len(revealed)]
        after = list(state)
        for i, v in revealed:
            probability *= teacher[number, i, v]
            after[i] = v
        source = number if after[position] != mask else int(np.dot(after, stride))
        weights.append(probability)
        targets.append(teacher[source, position])
    return np.array(weights), np.array(targets)


def test_targets_are_all_outcomes_of_the_first_step() -> None:
    teacher, _ = true_denoiser(WORLD)
    states = all_states(3, 3)
    mean = round_optimum(teacher, 0.3, "kl-fwd")
    geometric = round_optimum(teacher, 0.3, "kl-bwd")
    for number, state in enumerate(states):
        for position in np.flatnonzero(state == 3):
            weights, targets = targets_by_enumeration(teacher, tuple(state), position, 0.3)
            assert weights.sum() == pytest.approx(1)
            np.testing.assert_allclose(mean[number, position], weights @ targets, atol=1e-12)
            expected = special.softmax(weights @ np.log(targets))
            np.testing.assert_allclose(geometric[number, position], expected, atol=1e-12)


def brute_force(divergence: str, weights: np.ndarray, values: np.ndarray, grid: int = 60) -> float:
    """Least expected divergence over the simplex of 3 tokens: a fine grid, then a local search."""
    a, b = np.meshgrid(np.arange(1, grid), np.arange(1, grid))
    keep = a + b < grid
    points = np.stack([a[keep], b[keep], grid - a[keep] - b[keep]], axis=-1) / grid

    def loss(q: np.ndarray) -> np.ndarray:
        each = DIVERGENCES[divergence](q[..., None, :], values).sum(axis=-1)
        return each @ weights

    def loss_at(y: np.ndarray) -> float:
        # Without SciPy's softmax, which takes longer than all the rest.
        first, second = np.exp(y)
        return float(loss(np.array([first, second, 1.0]) / (1 + first + second)))

    best = points[np.argsort(loss(points))[:3]]
    # Far finer than the bounds below, 1e-7 and 1e-6.
    options = {"xatol": 1e-9, "fatol": 1e-11, "maxiter": 4000, "maxfev": 4000}
    found = [
        optimize.minimize(
            loss_at, np.log(point[:2] / point[2]), method="Nelder-Mead", options=options
        )
        for point in best
    ]
    return min(result.fun for result in found)


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("spread", [0.4, 1.5])
def test_no_other_prediction_has_a_lower_expected_divergence(
    divergence: str, spread: float
) -> None:
    """Arbitrary targets with no dominant atom, so every branch of the solvers is used."""
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.ones(6), size=20)
    values = special.softmax(spread * rng.normal(size=(20, 6, 3)), axis=-1)
    solved = OPTIMA[divergence](weights, values)
    np.testing.assert_allclose(solved.sum(axis=-1), 1, atol=1e-12)
    for row in range(20):
        each = DIVERGENCES[divergence](solved[row], values[row]).sum(axis=-1)
        own = float(each @ weights[row])
        best = brute_force(divergence, weights[row], values[row])
        assert own <= best + 1e-7, row
        assert own >= best - 1e-6, row


@pytest.mark.parametrize("divergence", ALL)
def test_a_round_cannot_be_improved_at_any_state(divergence: str) -> None:
    """A random nudge of the optimum, in logits, never lowers the expected divergence."""
    teacher, _ = true_denoiser(WORLD)
    best = round_optimum(teacher, 0.4, divergence)
    loss = expected_divergence(best, teacher, 0.4, divergence)
    rng = np.random.default_rng(5)
    for size in (1e-3, 0.1, 1.0):
        # adding noise to log 0 leaves an unmasked position one-hot
        with np.errstate(divide="ignore"):
            nudged = special.softmax(np.log(best) + size * rng.normal(size=best.shape), axis=-1)
        other = expected_divergence(nudged, teacher, 0.4, divergence)
        assert (other >= loss - 1e-12).all()


def test_floor_of_kl_bwd_is_minus_log_z() -> None:
    """The loss at the optimum is -log of the geometric mean's normaliser, not zero."""
    teacher, _ = true_denoiser(WORLD)
    best = round_optimum(teacher, 0.3, "kl-bwd")
    loss = expected_divergence(best, teacher, 0.3, "kl-bwd")
    weights, targets = targets_by_enumeration(teacher, (3, 3, 3), 1, 0.3)
    assert loss[-1, 1] == pytest.approx(-special.logsumexp(weights @ np.log(targets)))
    assert loss[-1, 1] > 0.01


def test_an_atom_of_more_than_half_keeps_the_teacher_under_tvd_and_log_l1() -> None:
    teacher, _ = true_denoiser(WORLD)
    for divergence in ("tvd", "log-l1"):
        kept = round_optimum(teacher, 1 / 48, divergence)
        np.testing.assert_allclose(kept, teacher, atol=1e-12)


def test_a_step_that_reveals_everything_teaches_nothing() -> None:
    """dt = 1: every target is the teacher at x_t, whatever the divergence."""
    teacher, _ = true_denoiser(WORLD)
    for divergence in ALL:
        same = round_optimum(teacher, 1.0, divergence)
        np.testing.assert_allclose(same, teacher, atol=1e-9)


def test_kl_fwd_of_a_calibrated_teacher_changes_almost_nothing_and_kl_bwd_does() -> None:
    world = sticky_world()
    teacher, evidence = true_denoiser(world)
    probabilities = state_probabilities(world, evidence)
    moved = {
        divergence: mean_kl(round_optimum(teacher, 1 / 12, divergence), teacher, probabilities)
        for divergence in ("kl-fwd", "kl-bwd")
    }
    assert moved["kl-fwd"] < 1e-5
    assert moved["kl-bwd"] > 100 * moved["kl-fwd"]


def test_mean_over_masked_weighs_states_and_positions() -> None:
    probabilities = np.arange(64.0)
    masked = all_states(3, 3) == 3
    values = np.where(masked, 2.5, 99.0)
    assert mean_over_masked(values, probabilities, 3) == pytest.approx(2.5)


def test_an_unknown_divergence_is_named() -> None:
    teacher, _ = true_denoiser(WORLD)
    with pytest.raises(ConfigError, match=r"divergence='kl' is unknown.*; choose one of kl-bwd"):
        round_optimum(teacher, 0.3, "kl")
