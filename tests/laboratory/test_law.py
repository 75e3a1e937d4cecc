"""The differentiable law. Oracles: the sampler's law in NumPy, and finite differences in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.laboratory.law import make_layout, sampler_law, to_logits, to_predictions
from sdtt_jax.laboratory.world import (
    all_states,
    reveal_sums,
    reveal_ways,
    sample_distribution,
)

SIZE, LENGTH = 2, 3
LAYOUT = make_layout(SIZE, LENGTH)


def random_predictions(seed: int, size: int = SIZE, length: int = LENGTH) -> np.ndarray:
    """A table without structure, one-hot at unmasked positions."""
    states = all_states(size, length)
    drawn = np.random.default_rng(seed).dirichlet(np.ones(size), size=states.shape)
    shown = states[:, :, None] == np.arange(size)
    return np.where(states[:, :, None] == size, drawn, shown)


@pytest.mark.parametrize(("size", "length"), [(2, 4), (3, 1)])
def test_it_is_the_law_that_the_sums_over_reveals_give(size: int, length: int) -> None:
    predictions, layout = random_predictions(0, size, length), make_layout(size, length)
    for calls in (1, 2, 4):
        logits = to_logits(layout, predictions, calls)
        ways = jnp.asarray(reveal_ways(calls, length)[: min(calls, length) + 1])
        law = jax.jit(sampler_law)(layout.paths, logits, ways)
        np.testing.assert_allclose(
            law, sample_distribution(reveal_sums(predictions), calls), rtol=1e-5
        )


def test_its_gradient_is_that_of_finite_differences() -> None:
    """The gradient of a random weighting of sequences, at three calls, which visit every state."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        weights = jnp.asarray(rng.standard_normal(SIZE**LENGTH))
        logits = to_logits(LAYOUT, random_predictions(1), 3)
        ways = jnp.asarray(reveal_ways(3, LENGTH))

        @jax.jit
        def weighted(logits: tuple[jax.Array, ...]) -> jax.Array:
            log_probs = tuple(jax.nn.log_softmax(rows) for rows in logits)
            return weights @ sampler_law(LAYOUT.paths, log_probs, ways)

        gradient = jax.jit(jax.grad(weighted))(logits)
        step = 1e-5
        for group, rows in enumerate(logits):
            for place in itertools.islice(np.ndindex(rows.shape), 0, None, 5):
                sides = [
                    weighted((*logits[:group], rows.at[place].add(d), *logits[group + 1 :]))
                    for d in (step, -step)
                ]
                slope = float(sides[0] - sides[1]) / (2 * step)
                assert float(gradient[group][place]) == pytest.approx(slope, abs=1e-9)


def test_a_table_of_logits_becomes_the_predictions_that_it_was_made_of() -> None:
    predictions = random_predictions(2)
    back = to_predictions(LAYOUT, to_logits(LAYOUT, predictions, 2), np.zeros_like(predictions))
    masked = all_states(SIZE, LENGTH) == SIZE
    np.testing.assert_allclose(back[masked], predictions[masked], rtol=1e-5)
    one = to_predictions(LAYOUT, to_logits(LAYOUT, predictions, 1), predictions)
    np.testing.assert_allclose(one, predictions, rtol=1e-5)
