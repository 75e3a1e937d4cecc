"""Calibration of early exits. Oracles: exact binomial sums, many calibrations of known losses, and for models
of padded texts the network as a sampler runs it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sdtt_jax.diffusion.forward import q_xt
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.exits import THRESHOLDS, calibrate, hoeffding_bentkus, learn_then_test
from sdtt_jax.networks.exiting import Exiting
from sdtt_jax.ops.sequences import arrange
from tests.networks.test_exiting import LAYERS, LENGTH, NETWORK, PARAMS, VOCAB
from tests.worlds import TableDenoiser, as_model, random_table


@pytest.mark.parametrize(("count", "bound"), [(50, 0.1), (200, 0.05), (500, 0.3)])
def test_a_p_value_is_small_no_more_often_than_it_says(count, bound):
    """Over all outcomes of losses of 0 and 1 whose expectation is the bound."""
    hits = np.arange(count + 1)
    p = np.array([hoeffding_bentkus(k / count, count, bound) for k in hits])
    chance = stats.binom.pmf(hits, count, bound)
    for level in (0.01, 0.05, 0.1, 0.5):
        assert chance[p <= level].sum() <= level
    assert (np.diff(p) >= -1e-12).all()
    assert p[0] == pytest.approx((1 - bound) ** count)


def test_the_promise_is_kept_as_often_as_it_says():
    """1,000 calibrations on 300 texts, losses that rise with the setting; standard error 0.0095, seed 0."""
    rng, bound, failure = np.random.default_rng(0), 0.1, 0.1
    expected = np.linspace(0, 0.3, 31)
    wrong, chosen = 0, []
    for _ in range(1_000):
        losses = rng.random((300, 1)) < expected
        column = learn_then_test(losses, bound, failure)
        wrong += expected[column] > bound
        chosen.append(expected[column])
    assert wrong / 1_000 <= failure + 3 * 0.0095
    assert np.mean(chosen) > 0.05  # and the test is not merely cautious


def test_the_threshold_follows_from_the_texts():
    """With 400 texts, a bound that every threshold keeps gives the lowest threshold; a strict bound, none."""
    model = as_model(NETWORK, PARAMS())
    tokens = np.random.default_rng(0).integers(0, VOCAB, (400, LENGTH)).astype(np.int32)
    key, loose, strict = jax.random.key(0), 0.99, 1e-4
    found = calibrate(model, tokens, key, bound=loose, least=1, batch_size=400)
    assert found.threshold == min(THRESHOLDS)
    assert 1 <= found.layers < LAYERS
    assert 0 < found.disagreement < loose
    never = calibrate(model, tokens, key, bound=strict, least=1, batch_size=400)
    assert never == (THRESHOLDS[0], 0.0, LAYERS)


def test_padding_is_neither_masked_nor_counted_nor_seen():
    """Texts of 2 to 4 tokens in 8 positions. Oracle: the same masks, read by the network as a sampler runs
    it, with and without exits; the mean share of changed tokens is over texts in which one is masked."""
    tokenizer = types.SimpleNamespace(bos_id=0, eos_id=1)
    model = dataclasses.replace(as_model(NETWORK, PARAMS()), tokenizer=tokenizer)
    model = dataclasses.replace(model, facts=model.facts | {"sequences": "padded"})
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, VOCAB, (400, LENGTH)).astype(np.int32)
    tokens[np.arange(LENGTH) >= rng.integers(2, 5, (400, 1))] = tokenizer.eos_id
    key = jax.random.key(0)
    found = calibrate(model, tokens, key, bound=0.4, least=1, batch_size=400)

    @jax.jit
    def used(tokens):
        key_t, key_mask = jax.random.split(jax.random.fold_in(key, 0))
        t = jax.random.uniform(key_t, tokens.shape[:1], jnp.float32)
        arrangement = arrange(tokens, model.sequences)
        chance, sigma = model.schedule.move_chance(t), model.schedule.sigma(t)
        x_t = q_xt(key_mask, tokens, chance, VOCAB, arrangement.free)
        more = {"segments": arrangement.segments}
        hidden, layers = Exiting(NETWORK, found.threshold, 1).leave(PARAMS(), x_t, sigma, **more)
        states = (hidden, NETWORK.hidden(PARAMS(), x_t, sigma, **more))
        best = [jnp.argmax(NETWORK.logits(PARAMS(), x)[..., :VOCAB], axis=-1) for x in states]
        return x_t == VOCAB, best[0] != best[1], layers

    masked, differs, layers = jax.device_get(used(tokens))
    some = masked.any(axis=1)
    shares = (masked & differs).sum(axis=1)[some] / masked.sum(axis=1)[some]
    assert 100 < some.sum() < 400
    assert found.layers < LAYERS
    assert found.disagreement == pytest.approx(shares.mean(), abs=0.01)
    assert found.layers == pytest.approx(layers[some].mean(), abs=0.02)
    assert 0.1 < found.disagreement < 0.4


def test_other_networks_have_no_exits():
    model = as_model(TableDenoiser(), random_table(0))
    with pytest.raises(ConfigError, match="networks of the kind Denoiser"):
        calibrate(model, np.zeros((2, 3), np.int32), jax.random.key(0))
