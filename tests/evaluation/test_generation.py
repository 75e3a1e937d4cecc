"""Texts and their quality. Oracles: definitions written out, normal theory for the bootstrap."""

import itertools

import jax
import numpy as np
import pytest
from sdtt_jax.evaluation.generation import (
    paired_log_ratio,
    perplexity,
    sample_states,
    sample_texts,
    unigram_entropy,
)

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.diffusion.schedule import make_schedule
from tests.worlds import LENGTH, MASK, TableDenoiser, random_table

WORLD = MaskedDiffusion(TableDenoiser(), make_schedule())


def _texts(params, num_texts, batch_size, seed=0, **config):
    return sample_texts(
        WORLD,
        params,
        jax.random.key(seed),
        num_texts=num_texts,
        length=LENGTH,
        batch_size=batch_size,
        config=SamplerConfig(**({"num_steps": 4} | config)),
    )


def test_texts_are_whole_and_as_many_as_asked_for():
    tokens, nfe = _texts(random_table(0), num_texts=42, batch_size=32)
    assert tokens.shape == (42, LENGTH)
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < MASK
    assert 1 <= nfe <= 5


def test_equal_keys_give_equal_texts_and_batches_differ():
    params = random_table(0)
    first, _ = _texts(params, 64, 32)
    again, _ = _texts(params, 64, 32)
    np.testing.assert_array_equal(first, again)
    assert np.any(first[:32] != first[32:])


def test_two_models_share_their_noise():
    """Close models, same key: most texts are equal, which independent noise would not give."""
    table = random_table(0)
    close = {"table": table["table"] + 0.01}
    near = {"table": table["table"] + 0.02 * random_table(9)["table"]}
    ours, _ = _texts(table, 256, 32)
    np.testing.assert_array_equal(ours, _texts(close, 256, 32)[0])
    assert (ours == _texts(near, 256, 32)[0]).all(axis=1).mean() > 0.9
    assert (ours == _texts(table, 256, 32, seed=1)[0]).all(axis=1).mean() < 0.5


def test_states_of_one_generation_run_from_mask_to_text():
    config = SamplerConfig(num_steps=6)
    states = np.asarray(sample_states(WORLD, random_table(0), jax.random.key(1), LENGTH, config))
    assert states.shape == (8, LENGTH)
    assert np.all(states[0] == MASK)
    assert np.all(states[-1] != MASK)
    for before, after in itertools.pairwise(states):
        kept = before != MASK
        np.testing.assert_array_equal(before[kept], after[kept])


def test_unigram_entropy():
    tokens = np.array([[7, 7, 7, 7], [1, 2, 1, 2], [1, 2, 3, 4], [5, 5, 5, 6]])
    expected = [0, np.log(2), np.log(4), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))]
    np.testing.assert_allclose(unigram_entropy(tokens), expected, atol=1e-12)


def test_perplexity_and_its_interval():
    """The bootstrap of a mean of 400 normal values against normal theory: within 10 % of its width."""
    nll = np.random.default_rng(0).normal(3.0, 0.5, 400)
    interval = perplexity(nll, seed=1)
    assert interval.value == pytest.approx(np.exp(nll.mean()))
    half = 1.96 * nll.std(ddof=1) / 20
    assert np.log(interval.low) == pytest.approx(nll.mean() - half, abs=0.1 * half)
    assert np.log(interval.high) == pytest.approx(nll.mean() + half, abs=0.1 * half)
    assert perplexity(nll, seed=1) == interval


def test_pairing_takes_out_what_texts_have_in_common():
    rng = np.random.default_rng(2)
    common, own = rng.normal(3, 1, 500), rng.normal(-0.1, 0.05, 500)
    ratio = paired_log_ratio(common + own, common, seed=0)
    assert ratio.low < ratio.value < ratio.high < 0
    assert ratio.value == pytest.approx(own.mean())
    assert ratio.high - ratio.low < 0.02, "unpaired it would be 0.25 wide"
