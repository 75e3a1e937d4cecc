"""The naive twin. Oracles: the library's own functions, and brute-force sums on the enumerable world."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarking import naive
from experiments.settings import TeacherConfig
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.reverse import unmask_prob
from sdtt_jax.diffusion.sampler import prior_sample
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.objectives import distill_loss, teacher_loss
from tests import worlds

SCHEDULE = make_schedule(ScheduleConfig())
CONFIG = DenoiserConfig(
    vocab_size=127,  # 128 with MASK: for shapes like [6, 8, 12] XLA compiles a draw for half a minute
    length=8,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    cond_dim=8,
    time_conditioned=True,
)
VOCAB = CONFIG.mask_id + 1
X0 = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (6, CONFIG.length), np.int32)
# Losses and samplers call the network, which the twin has unrolled, several times: one layer is enough.
DENOISER = Denoiser(dataclasses.replace(CONFIG, num_layers=1))
DIFFUSION = MaskedDiffusion(DENOISER, SCHEDULE)


@pytest.fixture(scope="module")
def deep():
    """Parameters of two layers."""
    return worlds.noisy_params(Denoiser(CONFIG), 0)


@pytest.fixture(scope="module")
def params():
    return worlds.noisy_params(DENOISER, 0)


@pytest.fixture(scope="module")
def teacher():
    return worlds.noisy_params(DENOISER, 1)


def _value_and_gradient(loss):
    """`(params, context, key) -> ((total, weight, metrics), gradient)`, compiled once for all calls."""

    def objective(params, context, key):
        found = loss(params, context, X0, key)
        return found.total, found

    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def _assert_same(ours, twin):
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(ours),
        jax.tree_util.tree_leaves_with_path(twin),
        strict=True,
    ):
        scale = max(1.0, np.abs(a).max())
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=str(path))


@pytest.mark.parametrize("time_conditioned", [True, False])
def test_forward_is_the_denoisers(deep, time_conditioned):
    config = dataclasses.replace(CONFIG, time_conditioned=time_conditioned)
    denoiser = Denoiser(config)
    tokens = np.where(np.random.default_rng(2).random(X0.shape) < 0.5, X0, CONFIG.mask_id)
    sigma = np.linspace(0.1, 4.0, len(tokens), dtype=np.float32)
    ours = jax.jit(lambda p: denoiser.logits(p, denoiser.hidden(p, tokens, sigma)))(deep)
    twin = jax.jit(lambda p: naive.forward(config, p, tokens, sigma))(deep)
    assert twin.shape == (*tokens.shape, VOCAB)
    assert np.abs(twin).max() > 1
    np.testing.assert_allclose(twin, ours[..., :VOCAB], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weighting", ["nelbo", "even"])
def test_teacher_loss_is_the_lean_one(params, weighting):
    config = TeacherConfig(weighting=weighting)
    ours, twin = (
        jax.jit(lambda p, loss=loss: loss(p, {}, X0, jax.random.key(3)))(params)
        for loss in (
            teacher_loss(DIFFUSION, config),
            naive.teacher_loss(DIFFUSION, config),
        )
    )
    _assert_same(ours, twin)


@pytest.mark.slow
def test_the_gradient_of_the_teachers_loss_is_the_lean_ones(params):
    config = TeacherConfig()
    ours = _value_and_gradient(teacher_loss(DIFFUSION, config))
    twin = _value_and_gradient(naive.teacher_loss(DIFFUSION, config))
    key = jax.random.key(3)
    _assert_same(ours(params, {}, key), twin(params, {}, key))


@pytest.mark.slow
def test_distill_loss_and_gradient_where_no_draw_matters(params, teacher):
    """A step that reveals nothing, and one that reveals everything: the target is certain."""
    config = DistillConfig(divergence="log-l1")  # which looks at MASK's entry too
    ours = _value_and_gradient(distill_loss(DIFFUSION, config))
    twin = _value_and_gradient(naive.distill_loss(DIFFUSION, config))
    for dt in (1e-9, 1.5):
        context = {"teacher_params": teacher, "dt": jnp.float32(dt)}
        key = jax.random.key(4)
        _assert_same(ours(params, context, key), twin(params, context, key))


@pytest.mark.slow
def test_distill_loss_where_draws_matter(params, teacher):
    """Means over 300 keys; the bound is 4 standard errors of the paired difference."""
    config = DistillConfig(num_distill_steps=3, num_trajectories=2, reference_times=True)
    context = {"teacher_params": teacher, "dt": jnp.float32(0.2)}
    keys = jax.random.split(jax.random.key(5), 300)

    def loss_of(loss):
        return jax.jit(lambda: jax.lax.map(lambda key: loss(params, context, X0, key), keys))()

    ours = loss_of(distill_loss(DIFFUSION, config))
    twin = loss_of(naive.distill_loss(DIFFUSION, config))
    np.testing.assert_array_equal(ours.weight, twin.weight)
    difference = np.float64(ours.total) - np.float64(twin.total)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert 0 < error < 0.02 * np.mean(ours.total), "the test would see nothing"
    assert abs(difference.mean()) < 4 * error


@functools.partial(jax.jit, static_argnums=0)
def _reverse(denoiser, params, states, t, s):
    """The time's sigma, the twin's log-probabilities of a step, and the lean step's chance to reveal."""
    time, after = jnp.full(len(states), t), jnp.full(len(states), jnp.maximum(s, 0.0))
    sigma = SCHEDULE.sigma(time)
    log_q = naive.reverse_log_probs(
        naive.log_probs(denoiser.config, params, states, sigma),
        SCHEDULE.move_chance(time),
        SCHEDULE.move_chance(after),
        worlds.MASK,
    )
    return sigma[0], log_q, unmask_prob(SCHEDULE, t, s)


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.6, 0.59), (0.3, -0.1)])
def test_reverse_distribution_is_the_lean_ones_on_an_enumerable_world(t, s):
    """The lean step reveals with `unmask_prob` and draws from SUBS: every outcome of every state."""
    denoiser = worlds.tiny_network(time_conditioned=True)
    params = worlds.noisy_params(denoiser, 2)
    states = worlds.all_states()
    sigma, log_q, chance = _reverse(denoiser, params, states, np.float32(t), np.float32(s))
    q = np.exp(np.asarray(log_q, np.float64))
    chance = float(chance)
    table = worlds.predictions(denoiser, params, float(sigma))
    for number, state in enumerate(worlds.all_states().tolist()):
        expected = worlds.reveals(tuple(state), table[number], chance)
        masked = [i for i, token in enumerate(state) if token == worlds.MASK]
        for tokens in itertools.product(range(worlds.MASK + 1), repeat=len(masked)):
            outcome = list(state)
            for position, token in zip(masked, tokens, strict=True):
                outcome[position] = token
            found = np.prod([q[number, i, outcome[i]] for i in masked])
            assert found == pytest.approx(expected.get(tuple(outcome), 0.0), abs=1e-6)


def test_a_step_to_time_0_reveals_everything_under_a_schedule_that_masks_something_there():
    denoiser = worlds.tiny_network(time_conditioned=True)
    diffusion = MaskedDiffusion(denoiser, make_schedule(ScheduleConfig("geometric")))
    states = worlds.all_states()
    times = (np.full(len(states), value, np.float32) for value in (0.1, -0.1))
    params = worlds.noisy_params(denoiser, 2)
    step = jax.jit(functools.partial(naive.reverse_step, diffusion))
    x_s, _ = step(params, jax.random.key(0), states, *times)
    assert (states == worlds.MASK).any()
    assert not (np.asarray(x_s) == worlds.MASK).any()


def test_sampler_fills_everything_and_calls_the_network_at_every_step(params):
    x_init = prior_sample(4, CONFIG.length, CONFIG.mask_id).at[:, 0].set(5)
    draw = jax.jit(functools.partial(naive.sample, DIFFUSION, num_steps=20))
    state, _ = draw(params, jax.random.key(6), x_init)
    x, calls = np.asarray(state.x), state.nfe
    assert x.shape == x_init.shape
    assert x.dtype == np.int32
    assert (x[:, 0] == 5).all()
    assert (x < CONFIG.mask_id).all()
    assert int(calls) in (20, 21)


def test_bfloat16_is_close_to_float32(deep):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    wide, narrow = (
        jax.jit(functools.partial(naive.forward, c))(deep, X0) for c in (CONFIG, config)
    )
    assert narrow.dtype == jnp.float32
    wide, narrow = np.asarray(wide), np.asarray(narrow)
    assert 0 < np.abs(wide - narrow).max() < 0.05 * np.abs(wide).max()
