"""The discrepancy. Oracles: the paper's sums in loops, and the gradient of the enumerated expectation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.block import draw_block
from sdtt_jax.distillation.mmd import MmdConfig, group_rewards, mmd_terms
from sdtt_jax.errors import ConfigError
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    noisy_params,
    random_table,
    tiny_network,
)

DIFFUSION, TABLE = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(5, spread=0.7)
VECTORS = np.random.default_rng(0).standard_normal((VOCAB, 4), np.float32)
GAMMA = 0.2


def features(params, tokens):
    """Features of a token and of the sum of its text, so that they depend on all tokens."""
    own = params[tokens]
    return own + 0.5 * own.sum(axis=-2, keepdims=True)


def kernel(a, b, gamma):
    return np.exp(-gamma * ((a - b) ** 2).sum())


def rewards_in_loops(real, made, asked, gamma):
    (size, batch, length, _), found = made.shape, []
    for text in range(batch):
        s = [i for i in range(length) if asked[text, i]]
        pairs = [(i, j) for i, j in itertools.product(s, s) if i != j]
        near = sum(
            kernel(real[text, i], made[b, text, j], gamma) for b in range(size) for i, j in pairs
        )
        apart = sum(
            kernel(made[b, text, i], made[c, text, j], gamma)
            for b, c in itertools.permutations(range(size), 2)
            for i, j in pairs
        )
        found.append(
            2 * near / (size * len(s) ** 2) - apart / (size * (size - 1) * len(s) * (len(s) - 1))
        )
    return np.array(found)


def test_a_groups_reward_is_the_papers_sum():
    rng = np.random.default_rng(1)
    real, made = rng.standard_normal((2, 4, 3)), rng.standard_normal((3, 2, 4, 3))
    asked = np.array([[True, True, False, True], [True, True, True, True]])
    found = jax.jit(group_rewards)(real, made, asked, 0.3)
    np.testing.assert_allclose(found, rewards_in_loops(real, made, asked, 0.3), rtol=1e-4)
    # Sums of narrow features are wide.
    narrow = jnp.bfloat16(real), jnp.bfloat16(made)
    exact = rewards_in_loops(*(np.float64(x) for x in narrow), asked, 0.3)
    np.testing.assert_allclose(jax.jit(group_rewards)(*narrow, asked, 0.3), exact, rtol=1e-4)


def test_the_gradient_is_that_of_the_expected_reward():
    """One text, all MASK; the 729 pairs of its completions enumerated.

    n = 20,000 texts of 2 groups, standard error below 0.004, seed 0.
    """
    config, count = MmdConfig(1, num_groups=2, group_size=2, gamma=GAMMA), 20_000
    text = np.array([0, 2, 1], np.int32)
    texts = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
    made, real = features(VECTORS, texts), features(VECTORS, text[None])
    asked = np.ones((1, LENGTH), bool)
    pairs = np.array(list(itertools.product(range(len(texts)), repeat=2)))
    rewards = jax.jit(group_rewards)(
        np.repeat(real, len(pairs), 0), made[pairs.T], np.repeat(asked, len(pairs), 0), GAMMA
    )

    @jax.jit
    @jax.value_and_grad
    def expected(table):
        log_probs = jax.nn.log_softmax(table["table"][-1])
        law = jnp.exp(sum(log_probs[i, texts[:, i]] for i in range(LENGTH)))
        return -(law[pairs[:, 0]] * law[pairs[:, 1]] * rewards).sum()

    def estimated(table):
        x0 = jnp.tile(text, (count, 1))
        total, reward = mmd_terms(
            DIFFUSION, table, jnp.asarray(VECTORS), features, x0, jax.random.key(0), config
        )
        return total / count, reward

    gradient, reward = jax.device_get(jax.jit(jax.grad(estimated, has_aux=True))(TABLE))
    value, wanted = jax.device_get(expected(TABLE))
    wanted = wanted["table"][-1]
    assert float(reward) == pytest.approx(-float(value), abs=0.01)
    assert np.abs(wanted).max() > 0.02
    np.testing.assert_allclose(gradient["table"][-1], wanted, atol=0.012)
    assert (gradient["table"][:-1] == 0).all()


@pytest.mark.parametrize("texts", [[[0, 2, 1]], np.array([[0, 2, 1]], np.int8)])
def test_features_get_int32_whatever_the_texts_are(texts):
    """A list ended in an AttributeError, and a network looks up int8 only in small vocabularies."""

    def checked(params, tokens):
        assert (tokens.shape, tokens.dtype) == ((1, LENGTH), np.int32)
        return features(params, tokens)

    key, config = jax.random.key(0), MmdConfig(1)
    terms = jax.eval_shape(
        lambda table: mmd_terms(
            DIFFUSION, table, jnp.asarray(VECTORS), checked, texts, key, config
        ),
        TABLE,
    )
    assert [term.shape for term in terms] == [(), ()]


def test_groups_that_are_equally_good_teach_nothing():
    """A reward counts against the mean of the other groups'. Oracle: features that are all alike."""
    x0, config = np.zeros((4, LENGTH), np.int32), MmdConfig(1, num_groups=3)

    def total(table):
        return mmd_terms(
            DIFFUSION, table, jnp.zeros((VOCAB, 2)), features, x0, jax.random.key(0), config
        )

    gradient, reward = jax.jit(jax.grad(total, has_aux=True))(TABLE)
    assert float(reward) > 0.1
    np.testing.assert_allclose(gradient["table"], 0, atol=1e-6)


def test_states_of_a_layer_are_those_of_the_network_cut_there():
    """Layer 1 has the states of a network whose second block is the identity, and not those of layer 2."""
    network, tokens = tiny_network(), np.array([[0, 2, 1], [1, 1, 0]], np.int32)
    params = jax.device_get(noisy_params(network, 0))
    layer_states = jax.jit(network.layer_states, static_argnames="layer")
    states = [np.asarray(layer_states(params, tokens, layer=layer)) for layer in (1, 2)]
    assert states[0].shape == (2, LENGTH, 16)
    first = np.array([1.0, 0.0], np.float32)  # keeps the first of two blocks
    blocks = jax.tree.map(lambda x: x * first.reshape(2, *[1] * (x.ndim - 1)), params["blocks"])
    # A block whose gates are zero is the identity.
    one = layer_states(params | {"blocks": blocks}, tokens, layer=2)
    np.testing.assert_allclose(one, states[0], rtol=1e-5)
    assert (np.abs(states[1] - states[0]) > 1e-3).any()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"group_size": 1}, "group_size"),
        ({"num_groups": 1}, "num_groups"),
        ({"gamma": 0.0}, "gamma"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        MmdConfig(**fields)


def test_shown_tokens_are_not_drawn_again():
    """With all calls but the last one shown, completions differ from the text at masked positions alone."""
    x0, key, config, seen = np.zeros((8, LENGTH), np.int32), jax.random.key(1), MmdConfig(3), []
    vectors = jnp.asarray(VECTORS)

    def watched(params, tokens):
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), tokens)
        return features(params, tokens)

    @jax.jit
    def run():
        mmd_terms(DIFFUSION, TABLE, vectors, watched, x0, key, config)
        return draw_block(DIFFUSION, x0, jax.random.split(key)[0], config.num_calls).x_t

    shown = np.asarray(run()) != MASK
    jax.effects_barrier()
    texts = np.stack(seen)
    assert len(texts) == 1 + config.num_groups * config.group_size
    assert shown.any()
    assert not shown.all()
    assert (texts[:, shown] == 0).all()
    assert (texts != 0).any()
    assert MASK not in texts
