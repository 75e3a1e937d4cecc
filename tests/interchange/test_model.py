"""`sdtt_jax.load`: what a run delivered comes back as something to sample from and to score with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.diffusion.nelbo import nelbo
from sdtt_jax.errors import CheckpointError, ConfigError


def test_a_run_means_its_last_round_and_any_part_can_be_named(run, model):
    assert model.facts["stage"] == "rounds/01"
    assert sdtt_jax.load(run / "teacher").facts["stage"] == "teacher"
    assert sdtt_jax.load(run / "rounds" / "01" / "final").facts["stage"] == "rounds/01"


def test_logits_have_mask_and_no_padding(model):
    tokens = jnp.zeros((2, 12), jnp.int32)
    assert model.logits(tokens).shape == (2, 12, model.tokenizer.vocab_size + 1)
    assert model.logits(tokens).dtype == jnp.float32


def test_log_probs_are_subs(model):
    mask = model.denoiser.mask_id
    x_t = jnp.array([[3, mask, 4] + [mask] * 9])
    log_probs = np.asarray(model.log_probs(x_t))
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-5)
    assert np.all(log_probs[..., mask] == -np.inf)
    assert log_probs[0, 0, 3] == 0.0
    assert np.isneginf(log_probs[0, 0]).sum() == log_probs.shape[-1] - 1


def test_samples_keep_the_prompt_and_repeat_with_the_key(model):
    key = jax.random.key(3)
    texts = model.sample(key, 3, num_steps=4, prompt="in the")
    assert texts.shape == (3, 12)
    assert all(model.tokenizer.decode(row).startswith("in the") for row in texts)
    np.testing.assert_array_equal(texts, model.sample(key, 3, num_steps=4, prompt="in the"))


def test_samples_come_in_batches_of_any_size(model):
    """Five texts, two at once: all of them, and no two batches alike."""
    texts = np.asarray(model.sample(jax.random.key(1), 5, num_steps=4, batch_size=2))
    assert texts.shape == (5, model.config.length)
    assert len({tuple(row) for row in texts.tolist()}) == 5
    with pytest.raises(ConfigError, match="batch_size"):
        model.sample(jax.random.key(1), 5, num_steps=4, batch_size=0)


def test_score_is_the_mean_of_one_sample_bounds(model):
    """Oracle: `nelbo` with the same keys."""
    tokens, key = jnp.arange(24).reshape(2, 12) % 20, jax.random.key(5)
    expected = [
        nelbo(model.denoiser, model.params, tokens, jax.random.fold_in(key, i), model.schedule)
        for i in range(3)
    ]
    np.testing.assert_allclose(
        model.score(tokens, key, 3), np.mean(expected, axis=0), rtol=1e-5, atol=1e-6
    )


def test_a_prompt_that_is_too_long_is_refused(model):
    with pytest.raises(ConfigError, match="prompt has 13 tokens"):
        model.sample(jax.random.key(0), 1, num_steps=2, prompt="in the beginn")


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        sdtt_jax.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no finished model"):
        sdtt_jax.load(tmp_path / "empty")
    moved = tmp_path / "moved" / "final"
    moved.parent.mkdir()
    (run / "teacher" / "final").rename(moved)
    try:
        with pytest.raises(CheckpointError, match="no tokenizer folder above"):
            sdtt_jax.load(moved.parent)
    finally:
        moved.rename(run / "teacher" / "final")
