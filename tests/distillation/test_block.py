"""Blocks and log-probabilities of tokens. Oracles: the sampler's law by hand, and `log_softmax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule, values_at
from sdtt_jax.distillation.block import draw_block, token_log_probs
from tests.worlds import MASK, VOCAB, TableDenoiser, noisy_params, tiny_network

DIFFUSION = MaskedDiffusion(TableDenoiser(), make_schedule())


@pytest.mark.parametrize("num_calls", [1, 3])
def test_a_block_is_what_one_of_the_samplers_calls_reveals(num_calls):
    """Before call c of n a position is masked with probability 1 - c/n, and the call reveals it with 1/n.

    n = 60,000 positions, standard error at most 2.1e-3, seed 0.
    """
    x0 = np.ones((600, 100), np.int32)
    block = jax.jit(draw_block, static_argnums=(0, 3))(DIFFUSION, x0, jax.random.key(0), num_calls)
    masked, revealed = np.asarray(block.x_t) == MASK, np.asarray(block.revealed)
    assert not (revealed & ~masked).any()
    assert masked.mean() == pytest.approx((num_calls + 1) / (2 * num_calls), abs=0.01)
    assert revealed.mean() == pytest.approx(1 / num_calls, abs=0.01)
    first = masked.all(axis=1)
    assert first.mean() == pytest.approx(1 / num_calls, abs=0.01)
    times = 1 - np.arange(num_calls) / num_calls
    sigmas = np.unique(block.sigma)
    np.testing.assert_allclose(sigmas, np.sort(values_at(DIFFUSION.schedule, *times)[1]), rtol=1e-5)
    assert (np.asarray(block.sigma)[first] == sigmas[-1]).all()
    last = (masked == revealed).all(axis=1)
    assert last.mean() == pytest.approx(1 / num_calls, abs=0.01)


@pytest.mark.parametrize(
    "schedule", [ScheduleConfig("geometric"), ScheduleConfig("linear", sigma_max=1.0)]
)
def test_under_a_schedule_that_leaves_tokens_clean_a_block_is_still_what_a_call_reveals(schedule):
    """Of what is masked at time 1, which is all that the sampler begins with, `move_chance(1/2)` of
    `move_chance(1)` is left by the first of two calls. n = 40,000, standard error 2.5e-3, seed 1."""
    diffusion = MaskedDiffusion(TableDenoiser(), make_schedule(schedule))
    x0 = np.ones((400, 200), np.int32)
    block = jax.jit(draw_block, static_argnums=(0, 3))(diffusion, x0, jax.random.key(1), 2)
    chances, _ = values_at(diffusion.schedule, 0.5, 1.0)
    left = chances[0] / chances[1]
    masked, revealed = np.asarray(block.x_t) == MASK, np.asarray(block.revealed)
    first = masked.all(axis=1)
    assert first.mean() == pytest.approx(0.5, abs=0.01)
    assert revealed[first].mean() == pytest.approx(1 - left, abs=0.01)
    assert masked[~first].mean() == pytest.approx(left, abs=0.01)
    assert (revealed == masked)[~first].all()


def test_log_probabilities_and_their_gradient_are_those_of_log_softmax():
    network = tiny_network()
    head, rng = network.head_params(noisy_params(network, 0)), np.random.default_rng(0)
    x_t = np.array([[MASK, 1, MASK], [0, MASK, MASK], [2, 1, 0]])
    tokens = np.array([[0, 0, 2], [1, 1, 2], [0, 0, 0]], np.int32)
    tokens, selected = jax.device_put((tokens, x_t == MASK))
    hidden = rng.standard_normal((*x_t.shape, network.config.embed_dim), np.float32)
    factors = rng.standard_normal(x_t.shape, np.float32)

    def ours(head, hidden):
        log_probs = token_log_probs(network, head, hidden, selected, tokens)
        return (jnp.exp(0.3 * log_probs) * factors).sum(), log_probs

    def dense(head, hidden):
        logits = network.logits(head, hidden)[..., :VOCAB]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
        log_probs = jnp.where(selected, chosen, 0.0)
        return (jnp.exp(0.3 * log_probs) * factors).sum(), log_probs

    (gradient, found), (wanted, expected) = (
        jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True))(head, hidden)
        for function in (ours, dense)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, wanted
    )
