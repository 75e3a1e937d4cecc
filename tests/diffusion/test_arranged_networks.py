"""Networks of texts side by side, prompts and padding. Oracle: a loop over the texts, each by itself."""

import dataclasses

import jax
import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.attention.dispatch import LENGTH_BY_HEAD
from sdtt_jax.networks.config import CoupledConfig, LlamaDenoiserConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.networks.llama import LlamaDenoiser
from sdtt_jax.objectives import judge_loss
from sdtt_jax.ops.noise import draw_noise
from tests.diffusion.test_arranged import (
    BATCHES,
    BOS,
    DENOISER,
    KEY,
    LENGTH,
    LOGITS,
    SIZES,
    VOCAB,
    _arrangement,
    _sequences,
    _slices,
    _texts,
)
from tests.worlds import as_causal, noisy_params

HIDDEN = jax.jit(
    lambda network, params, tokens, segments: network.hidden(params, tokens, segments=segments),
    static_argnums=0,
)
CAUSAL_NLL = jax.jit(causal_nll, static_argnames="network")


def _llama(**fields):
    config = LlamaDenoiserConfig(
        VOCAB, length=LENGTH, num_kv_heads=1, mlp_dim=20, **SIZES, **fields
    )
    return LlamaDenoiser(config)


def _long():
    """A network whose attention computes one head at a time."""
    config = sdtt_jax.DenoiserConfig(VOCAB, length=LENGTH_BY_HEAD + 64, **SIZES)
    return sdtt_jax.Denoiser(config)


NETWORKS = {
    "all heads at once": (DENOISER, (8, 8)),
    "one head after the other": (_long(), (LENGTH_BY_HEAD, 64)),
    "llama, shifted": (_llama(shift=True), (8, 8)),
    "causal": (CausalNetwork(CausalConfig(VOCAB, length=LENGTH, **SIZES)), (8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_a_text_packed_with_others_are_those_of_it_alone(name):
    """Rotations count positions through all texts, and in float32 they round differently at other positions.

    So equality is to 1e-5 for logits as large as those of trained networks, here below 10.
    """
    network, lengths = NETWORKS[name]
    params, texts = noisy_params(network, 2, spread=0.15), _texts(lengths)
    tokens = np.concatenate(texts)[None]
    together = np.asarray(
        LOGITS(network, params, tokens, _arrangement(tokens, "documents").segments)
    )[0]
    ends = np.cumsum(lengths)
    for text, found in zip(texts, np.split(together, ends[:-1]), strict=True):
        alone = np.asarray(LOGITS(network, params, text[None]))[0]
        assert np.abs(alone).max() < 10
        np.testing.assert_allclose(found, alone, atol=1e-5)
    # Within one segment they see each other.
    one = np.asarray(LOGITS(network, params, tokens, np.zeros_like(tokens)))[0]
    assert np.abs(together - one).max() > 1e-3


def test_open_edges_stay_within_a_text():
    network = _llama()
    params, tokens = noisy_params(network, 3, spread=0.3), BATCHES["documents"]
    segments, edges = (
        _arrangement(tokens, "documents").segments,
        np.ones((*tokens.shape, LENGTH), bool),
    )
    opened = jax.jit(network.hidden)(params, tokens, None, edges, segments=segments)
    np.testing.assert_allclose(opened, HIDDEN(network, params, tokens, segments), atol=2e-6)


@pytest.mark.parametrize("kind", ["documents", "padded"])
def test_the_causal_loss_is_that_of_a_loop_over_texts(kind):
    network, _ = NETWORKS["causal"]
    params, tokens = noisy_params(network, 4, spread=0.3), BATCHES[kind]
    expected = sum(
        np.asarray(CAUSAL_NLL(network, params, tokens[row, place][None], BOS)).sum()
        for row, place in _slices(kind)
    )
    loss = jax.jit(judge_loss(network, BOS, _sequences(kind)))(params, {}, tokens, KEY)
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    assert float(loss.weight) == sum(place.stop - place.start for _, place in _slices(kind))


def test_networks_that_read_the_whole_sequence_refuse_segments_by_name():
    gpt2 = GPT2Network(GPT2Config(VOCAB, length=LENGTH, **SIZES))
    tokens = BATCHES["documents"]
    segments = _arrangement(tokens, "documents").segments
    with pytest.raises(ConfigError, match=r"GPT-2 .* cannot be confined to segments"):
        jax.eval_shape(lambda: gpt2.hidden(noisy_params(gpt2, 0), tokens, segments))
    coupled = CoupledDenoiser(CoupledConfig.of(DENOISER.config, NoiseConfig()))
    noise = jax.eval_shape(lambda: draw_noise(KEY, tokens.shape, VOCAB, coupled.noise_kind))
    with pytest.raises(ConfigError, match=r"sees noise .* cannot be confined to segments"):
        coupled.hidden({}, tokens, None, noise, segments=segments)


@pytest.mark.parametrize("kind", list(BATCHES))
def test_a_causal_models_score_is_that_of_a_loop_over_texts(kind):
    """Oracle: `causal_nll` of every text by itself, over its tokens behind the prompt."""
    network, _ = NETWORKS["causal"]
    params, tokens = noisy_params(network, 4, spread=0.3), BATCHES[kind]
    if kind == "prompted":  # and a prompt alone, in which nothing counts
        tokens = np.concatenate([tokens, [[*[5] * (LENGTH - 1), BOS]]])
    model = as_causal(network, params, _sequences(kind))
    model = dataclasses.replace(model, facts=model.facts | {"sequences": kind})
    found = [[] for _ in tokens]
    for row, place in _slices(kind):
        text = tokens[row, place]
        prompt = int(np.argmax(text == BOS)) + 1 if kind == "prompted" else 0
        found[row] += np.asarray(CAUSAL_NLL(network, params, text[None], BOS))[0, prompt:].tolist()
    expected = [np.mean(nats) if nats else np.nan for nats in found]
    np.testing.assert_allclose(model.score(tokens), expected, rtol=1e-5)
