"""The gain share against a world whose optimum is known.

Oracles: the optimum of a round as a sum over everything that the first teacher step may do (k = 2),
written out below for a student that sees the time, and `optimum`'s expected divergences, which
average over the time.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.gain import GainConfig, measure_gain
from sdtt_jax.laboratory.optimum import expected_divergence, mean_over_masked, round_optimum
from sdtt_jax.model import batches
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    all_states,
    as_model,
    numbers,
    random_table,
)

KEEP = 1 - 1e-3
DT = 0.2


@dataclasses.dataclass(frozen=True)
class RoundDenoiser(TableDenoiser):
    """A table, or with `params["exact"]` the optimum of a round whose teacher is that table.

    Which of the two it is, is a parameter, so that one program serves both.

    `after[state, position, j]` is the sum, over all sets of j other masked positions and all tokens
    there, of the probability of these tokens times the teacher's value at the position afterwards.
    """

    backward: bool = True

    def hidden(self, params: Any, tokens: jax.Array, sigma: jax.Array | None = None) -> jax.Array:
        def plain() -> jax.Array:
            return super(RoundDenoiser, self).hidden(params, tokens, sigma)

        def optimum() -> jax.Array:
            return self._optimum(params, tokens, sigma)

        return jax.lax.cond(params["exact"], optimum, plain)

    def _optimum(self, params: Any, tokens: jax.Array, sigma: jax.Array | None) -> jax.Array:
        assert sigma is not None
        t = -jnp.expm1(-sigma) / KEEP
        r = jnp.minimum(1.0, DT / t)[:, None]
        others = (tokens == MASK).sum(axis=1)[:, None] - 1
        j = jnp.arange(LENGTH)
        weights = jnp.where(j <= others, r**j * (1 - r) ** jnp.maximum(others - j, 0), 0.0)
        rows = numbers(tokens)
        later = jnp.einsum("bj,bpjv->bpv", weights, params["after"][rows])
        mean = r[..., None] * params["now"][rows] + (1 - r[..., None]) * later
        return mean if self.backward else jnp.log(mean)


def optimum_params(log_table: np.ndarray, *, backward: bool) -> dict[str, np.ndarray]:
    states = all_states()
    value = log_table if backward else np.exp(log_table)
    after = np.zeros((len(states), LENGTH, LENGTH, VOCAB))
    stride = (VOCAB + 1) ** np.arange(LENGTH - 1, -1, -1)
    for number, state in enumerate(states):
        masked = np.flatnonzero(state == MASK)
        for position in masked:
            others = [i for i in masked if i != position]
            for j in range(len(others) + 1):
                for chosen in itertools.combinations(others, j):
                    for drawn in itertools.product(range(VOCAB), repeat=j):
                        revealed = state.copy()
                        revealed[list(chosen)] = drawn
                        weight = np.exp(
                            sum(log_table[number, i, v] for i, v in zip(chosen, drawn, strict=True))
                        )
                        after[number, position, j] += weight * value[revealed @ stride, position]
    return table_params(log_table) | {
        "after": np.float32(after),
        "now": np.float32(value),
        "exact": np.bool_(True),
    }


def table_params(log_table: np.ndarray) -> dict[str, np.ndarray]:
    """A table without an optimum."""
    states = len(log_table)
    return {
        "table": np.float32(log_table),
        "after": np.zeros((states, LENGTH, LENGTH, VOCAB), np.float32),
        "now": np.zeros((states, LENGTH, VOCAB), np.float32),
        "exact": np.bool_(False),
    }


LOG_TABLE = np.asarray(
    special.log_softmax(np.asarray(random_table(30)["table"], np.float64), axis=-1)
)
TEACHER = table_params(LOG_TABLE)
TEXTS = np.random.default_rng(31).integers(0, VOCAB, (2048, LENGTH), dtype=np.int32)


def measure(student, divergence="kl-bwd", texts=TEXTS, trajectories=64):
    denoiser = RoundDenoiser(backward=divergence == "kl-bwd")
    config = GainConfig(DistillConfig(divergence=divergence), trajectories)
    models = (as_model(denoiser, params) for params in (student, TEACHER))
    return measure_gain(*models, texts, DT, jax.random.key(32), config, batch_size=512)


@pytest.mark.parametrize("divergence", ["kl-bwd", "kl-fwd"])
def test_share_is_zero_for_the_teacher_itself(divergence):
    gain = measure(TEACHER, divergence, TEXTS[:512])
    assert gain.share == 0.0
    assert gain.teacher > gain.floor > 0


@pytest.mark.parametrize(("divergence", "error"), [("kl-bwd", 0.01), ("kl-fwd", 0.01)])
def test_share_is_one_for_the_exact_optimum(divergence, error):
    """2,048 texts of 64 trajectories, seed 32.

    The bounds are some four times the scatter between seeds (0.0025).
    """
    student = optimum_params(LOG_TABLE, backward=divergence == "kl-bwd")
    gain = measure(student, divergence)
    assert gain.share == pytest.approx(1.0, abs=error)
    assert gain.student < gain.teacher


def test_floor_of_few_trajectories_is_not_biased():
    """From 8 trajectories and from 64, with other draws: equal within 10 %."""
    student = optimum_params(LOG_TABLE, backward=True)
    few, many = measure(student, trajectories=8), measure(student, trajectories=64)
    assert few.floor == pytest.approx(many.floor, rel=0.1)


def test_divergences_are_the_exact_expectations():
    """Over uniform texts and times; 2,048 texts, seed 32, bound 6 % (standard error about 1.5 %)."""
    plain = np.exp(LOG_TABLE)
    shown = all_states()[:, :, None] == np.arange(VOCAB)
    teacher = np.where((all_states() == MASK)[:, :, None], plain, shown)
    optimum = round_optimum(teacher, DT, "kl-bwd")
    evidence = np.power(1.0 / VOCAB, (all_states() != MASK).sum(axis=1))
    masked = (all_states() == MASK).sum(axis=1)
    weight = special.beta(masked + 1, LENGTH - masked + 1) * evidence

    def exact(student):
        loss = expected_divergence(student, teacher, DT, "kl-bwd")
        return mean_over_masked(loss, weight, VOCAB)

    blind = table_params(np.log(np.maximum(optimum, 1e-30)))
    gain = measure(blind)
    assert gain.teacher == pytest.approx(exact(teacher), rel=0.06)
    assert gain.student == pytest.approx(exact(optimum), rel=0.06)
    # The best that a student without the time can do stays above the floor, which knows the time.
    assert 0.85 < gain.share < 1.0


def test_the_gain_does_not_depend_on_the_rows_that_fill_up_a_batch(monkeypatch):
    """As on a mesh that 6 texts do not divide. Oracle: the same on one device."""
    student = optimum_params(LOG_TABLE, backward=True)
    alone = measure(student, texts=TEXTS[:6], trajectories=2)
    monkeypatch.setattr(batches, "full_batch", lambda *_: 8)
    filled = measure(student, texts=TEXTS[:6], trajectories=2)
    np.testing.assert_allclose(filled, alone, rtol=1e-4)


def test_rounds_that_cannot_be_measured_are_named():
    with pytest.raises(ConfigError, match="divergence='mse' has no known floor"):
        GainConfig(DistillConfig(divergence="mse"), 64)
    for number, message in ((7, "even and positive"), (0, "even and positive"), (2.5, "a whole")):
        with pytest.raises(
            ConfigError, match=f"num_trajectories must be {message}.*, not {number}"
        ):
            GainConfig(DistillConfig(), number)
