"""What functions accept as real numbers. Oracle: shapes and ranges of their docstrings, written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.forward import q_xt, sample_t, subs_log_probs
from sdtt_jax.diffusion.sampler import prior_sample
from sdtt_jax.distillation.loss import distillation_terms
from sdtt_jax.distillation.rounds import DistillConfig, Student, next_round
from sdtt_jax.distillation.targets import teacher_targets
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.values import check_numbers, extremes
from tests.worlds import MASK, TableDenoiser, as_model, random_table

KEY, CONFIG = jax.random.key(0), DistillConfig()
MODEL = as_model(TableDenoiser(), random_table(1))
X0 = np.array([[0, 1, 2], [2, 1, 0]], np.int32)


def _terms(dt):
    return distillation_terms(MODEL.diffusion, MODEL.params, MODEL.params, X0, dt, KEY, CONFIG)


def _targets(t, dt):
    return teacher_targets(MODEL.diffusion, MODEL.params, KEY[None], X0, t, dt, CONFIG)


def _next_round(dt):
    return next_round(CONFIG, Student(1.0), 1, dt=dt).context["dt"]


# `jnp.full` would compile a program.
HALVES = jax.device_put(np.full(2, 0.5, np.float32))
QUARTER = jax.device_put(np.full(1, 0.25, np.float32))
TEXTS = {
    "q_xt": lambda chance: q_xt(KEY, X0, chance, MASK),
    "teacher_targets": lambda t: _targets(t, 0.25),
    "log_probs": lambda sigma: MODEL.log_probs(X0, sigma),
}
STEPS = {
    "distillation_terms": _terms,
    "teacher_targets": lambda dt: _targets(HALVES, dt),
    "next_round": _next_round,
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    "dt",
    [0.0, -0.25, 2, np.nan, QUARTER, "0.25", True],
    ids=str,
)
def test_a_step_that_no_teacher_takes_is_refused(name, dt):
    """A step of 0, below it, or NaN reveals nothing, so that the loss would seem perfect."""
    with pytest.raises(ConfigError, match=r"dt must (lie in \(0, 1\]|be one real number), not "):
        STEPS[name](dt)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "wrong",
    [
        jax.device_put(np.full((2, 1), 0.5, np.float32)),
        np.full(3, 0.5),
        np.array([np.nan, 0.5]),
        -np.asarray(HALVES),
        "a",
    ],
    ids=str,
)
def test_numbers_of_texts_are_one_each_and_in_range(name, wrong):
    with pytest.raises(ConfigError, match=r"(move_chance|t|sigma) must (be|lie in) "):
        TEXTS[name](wrong)


@pytest.mark.parametrize("chance", [0.5, jax.device_put(np.float32(0.5))], ids=str)
def test_one_chance_is_not_a_chance_for_each_text(chance):
    with pytest.raises(ConfigError, match=r"move_chance must be real numbers \[2\], not float"):
        TEXTS["q_xt"](chance)


@pytest.mark.parametrize("shape", [(2, 3, MASK), (2, 1, MASK + 1), (3, MASK + 1), ()], ids=str)
def test_logits_have_a_row_for_each_position_and_a_column_for_mask(shape):
    with pytest.raises(ConfigError, match=rf"with a column .* at least {MASK + 1}, not \["):
        subs_log_probs(jnp.zeros(shape), X0, MASK)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_t(KEY, 4, eps=2.0), r"eps must lie in \[0, 1\), not 2"),
        (lambda: sample_t(KEY, 4, eps=np.nan), r"eps must lie in \[0, 1\), not nan"),
        (lambda: prior_sample(1, 8, -1), "mask_id must be at least 0, not -1"),
        (lambda: prior_sample(-1, 8, 7), "batch must be at least 0, not -1"),
    ],
)
def test_where_texts_and_times_begin(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("name", ["q_xt", "log_probs"])
def test_traced_numbers_are_taken_as_they_are(name):
    """`jit` and `vmap` show no values; the result is that of the known numbers."""
    call, rows = TEXTS[name], jnp.stack([HALVES, 0.5 * HALVES])
    np.testing.assert_array_equal(jax.jit(call)(HALVES), call(HALVES))
    np.testing.assert_array_equal(jax.vmap(call)(rows), [call(row) for row in rows])


def test_nothing_is_known_of_traced_and_of_empty_arrays():
    assert extremes(np.zeros(0)) is None
    seen = []
    jax.jit(lambda x: seen.append(extremes(x)))(jnp.ones(2))
    assert seen == [None]
    assert extremes(jnp.array([2, 1, 3])) == (1, 3)
    jax.vmap(lambda x: check_numbers("[0, 1]", (), x=x))(jnp.full(2, 7.0))
