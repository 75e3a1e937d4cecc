"""Blocks and log-probabilities of tokens. Oracles: the sampler's law by hand, and `log_softmax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.block import draw_block, token_log_probs
from tests.worlds import MASK, VOCAB, TableDenoiser, noisy_params, tiny_network

DIFFUSION = MaskedDiffusion(TableDenoiser(), make_schedule())


@pytest.mark.parametrize("num_calls", [1, 3])
def test_a_block_is_what_one_of_the_samplers_calls_reveals(num_calls):
    """Before call c of n a position is masked with probability 1 - c/n, and the call reveals it with 1/n.

    n = 60,000 positions, standard error at most 2.1e-3, seed 0.
    """
    x0 = jnp.ones((600, 100), jnp.int32)
    block = jax.jit(draw_block, static_argnums=(0, 3))(DIFFUSION, x0, jax.random.key(0), num_calls)
    masked, revealed = np.asarray(block.x_t == MASK), np.asarray(block.revealed)
    assert not (revealed & ~masked).any()
    assert masked.mean() == pytest.approx((num_calls + 1) / (2 * num_calls), abs=0.01)
    assert revealed.mean() == pytest.approx(1 / num_calls, abs=0.01)
    first = masked.all(axis=1)
    assert first.mean() == pytest.approx(1 / num_calls, abs=0.01)
    last = (masked == revealed).all(axis=1)
    assert last.mean() == pytest.approx(1 / num_calls, abs=0.01)


def test_log_probabilities_and_their_gradient_are_those_of_log_softmax():
    network = tiny_network()
    params, rng = noisy_params(network, 0), np.random.default_rng(0)
    x_t = jnp.array([[MASK, 1, MASK], [0, MASK, MASK], [2, 1, 0]])
    tokens, selected = jnp.array([[0, 0, 2], [1, 1, 2], [0, 0, 0]]), x_t == MASK
    factors = jnp.asarray(rng.standard_normal(x_t.shape), jnp.float32)

    def ours(params):
        head, hidden = network.head_params(params), network.hidden(params, x_t)
        log_probs = token_log_probs(network, head, hidden, selected, tokens)
        return (jnp.exp(0.3 * log_probs) * factors).sum(), log_probs

    def dense(params):
        logits = network.logits(params, network.hidden(params, x_t))[..., :VOCAB]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
        log_probs = jnp.where(selected, chosen, 0.0)
        return (jnp.exp(0.3 * log_probs) * factors).sum(), log_probs

    (gradient, found), (wanted, expected) = (
        jax.jit(jax.grad(function, has_aux=True))(params) for function in (ours, dense)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, wanted
    )
