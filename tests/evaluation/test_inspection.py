"""A model in each of its possible readings. Oracles: its own bound, and its logits of plain prefixes."""

import dataclasses

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.inspection import Reading, losses, own_reading, recognised
from sdtt_jax.evaluation.likelihood import text_bounds
from sdtt_jax.interchange.relatives import ORIGIN
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from sdtt_jax.networks.config import (
    GPT2Config,
    GPT2DenoiserConfig,
    LlamaConfig,
    LlamaDenoiserConfig,
)
from sdtt_jax.networks.gpt2 import GPT2Network
from sdtt_jax.networks.kinds import network_of
from sdtt_jax.networks.llama import LlamaDenoiser, LlamaNetwork
from sdtt_jax.parallel.placement import unbox
from tests.worlds import as_causal, as_model, noisy_params

SIZES = {"vocab_size": 7, "length": 8, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
TEXTS = np.random.default_rng(0).integers(0, 7, (3, 8)).astype(np.int32)
KEY = jax.random.key(0)
FOUR = [Reading(causal, shift) for causal in (False, True) for shift in (False, True)]


NETWORKS = {
    "gpt2": GPT2Network(GPT2Config(**SIZES)),
    "llama": LlamaNetwork(LlamaConfig(**SIZES)),
    "causal": CausalNetwork(CausalConfig(**SIZES)),
}


GPT2_OWN = Reading(causal=False, shift=True)


@pytest.mark.parametrize(
    ("kind", "own"),
    [*((LlamaDenoiserConfig, own) for own in FOUR), (GPT2DenoiserConfig, GPT2_OWN)],
    ids=str,
)
def test_a_denoiser_has_its_own_bound_under_its_own_reading(kind, own):
    denoiser = network_of(kind(**SIZES, causal=own.causal, shift=own.shift))
    model = as_model(denoiser, noisy_params(denoiser, 1))
    assert own_reading(model) == own
    found = losses(model, TEXTS, KEY, num_maskings=2)
    assert list(found) == FOUR
    [batch] = text_bounds(model, TEXTS, KEY, BoundConfig("low-variance", 2), batch_size=8)
    assert found[own] == pytest.approx(float(batch().nelbo.mean()), rel=1e-6)
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_causal_model_predicts_the_last_tokens_of_pieces(kind):
    """Two pieces of four tokens from each text: its first half and its second."""
    model = as_causal(NETWORKS[kind], noisy_params(NETWORKS[kind], 1))
    own = own_reading(model)
    assert own == Reading(causal=True, shift=True)
    found = losses(model, TEXTS, KEY, num_maskings=2)
    pieces = np.concatenate([TEXTS[:, :4], TEXTS[:, 4:]])
    log_probs = model.log_probs(pieces[:, :-1])[:, -1]
    expected = -np.asarray(log_probs)[np.arange(6), pieces[:, -1]].mean()
    assert found[own] == pytest.approx(expected, rel=1e-5)
    assert list(found) == ([own] if kind == "causal" else FOUR)


def test_no_reading_of_a_causal_model_sees_what_it_predicts():
    """The probabilities of all tokens that a piece might end with sum to one."""
    model = as_causal(NETWORKS["llama"], noisy_params(NETWORKS["llama"], 1))
    rows = np.repeat(TEXTS[:1, :4], 7, axis=0)
    rows[:, -1] = np.arange(7)
    # Of a text of 7 tokens, one piece: its first 4.
    texts = np.pad(rows, ((0, 0), (0, 3)))
    # Six times the same, for the program of the test above.
    every = [losses(model, np.tile(row, (6, 1)), KEY, num_maskings=1) for row in texts]
    for reading in FOUR:
        assert sum(np.exp(-each[reading]) for each in every) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_piece_has_a_token_before_the_last(kind):
    """Texts of two tokens were cut into pieces of one, which was predicted from itself."""
    model = as_causal(NETWORKS[kind], noisy_params(NETWORKS[kind], 1))
    log_probs = np.asarray(model.log_probs(TEXTS[:, :1])[:, -1])
    expected = -log_probs[np.arange(3), TEXTS[:, 1]].mean()
    found = losses(model, TEXTS[:, :2], KEY, num_maskings=1)
    assert found[own_reading(model)] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="texts of 1 token have no loss; take 2 tokens or more"):
        losses(model, TEXTS[:, :1], KEY, num_maskings=1)


def test_readings_are_said_in_words():
    without, shifted, causal, both = map(str, FOUR)
    assert (without, shifted) == ("bidirectional, without shift", "bidirectional, with shift")
    assert (causal, both) == ("causal, without shift", "causal, with shift")


@pytest.mark.parametrize("number", [0, 2.5])
def test_pieces_are_counted(number):
    model = as_causal(NETWORKS["llama"], noisy_params(NETWORKS["llama"], 1))
    with pytest.raises(ConfigError, match=f"num_maskings must be .*, not {number}"):
        losses(model, TEXTS, KEY, num_maskings=number)


def test_a_width_like_that_of_the_padded_vocabulary_is_counted():
    """Of 128 rows and columns, 8 are tokens and MASK; the blocks' 128 features are no padding."""
    network = Denoiser(DenoiserConfig(7, 8, num_layers=1, embed_dim=128, num_heads=2))
    model = as_model(network, jax.eval_shape(lambda: unbox(network.init(jax.random.key(0)))))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    embedding, kernel, bias = 120 * 128, 128 * 120, 120
    assert recognised(model)["parameters"] == numbers - embedding - kernel - bias


def test_what_was_recognised_is_said():
    config = LlamaDenoiserConfig(**SIZES, tied_head=True)
    network = LlamaDenoiser(config)
    model = as_model(network, noisy_params(network, 1))
    found = recognised(model)
    # 8 rows with MASK; 4 projections, 3 matrices of the MLP, 3 norms.
    assert found["parameters"] == 8 * 8 + 4 * 8 * 8 + 3 * 8 * 32 + 3 * 8
    assert found["config"]["tied_head"]
    assert found["tokenizer"] is None
    assert (found["stored_as"], found["uniform_share"], found["mask_row"]) == ("F32", 0, None)
    dtypes = {"a": "F32", "b": "BF16", "c": "F32"}
    model = dataclasses.replace(model, facts=model.facts | {"dtypes": dtypes, "dtype": "F16"})
    assert recognised(model)["stored_as"] == "BF16, F32"


@pytest.mark.parametrize(
    ("published", "said"),
    [
        ({}, None),
        ({"published_config": {"model_type": "qwen3"}}, "qwen3"),
        ({"published_config": {"model_type": "mistral", ORIGIN: "phi3"}}, "phi3"),
    ],
)
def test_the_model_type_is_what_the_model_was_published_as(published, said):
    network = LlamaDenoiser(LlamaDenoiserConfig(**SIZES, tied_head=True))
    model = as_model(network, noisy_params(network, 1))
    model = dataclasses.replace(model, facts=model.facts | published)
    assert recognised(model)["model_type"] == said
