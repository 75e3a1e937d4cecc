"""Cached sampling against a loop without a cache, and against exact probabilities."""

import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from sdtt_jax.causal.sampler import generate, write_on
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import CausalConfig
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.ops.categorical import Filters, draw, filter_logits

SIZES = {"vocab_size": 11, "length": 12, "num_layers": 2, "embed_dim": 16, "num_heads": 2}
MODELS = {
    "causal": CausalNetwork(CausalConfig(**SIZES)),
    "gpt2": GPT2Network(GPT2Config(**SIZES)),
}
PROMPT = np.array([[3, 7], [0, 1], [10, 10]], np.int32)


def _randomised(model, scale=0.5):
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [rng.normal(scale=scale, size=s.shape).astype(np.float32) for s in leaves]
    return jax.tree.unflatten(tree, values)


def _without_cache(model, params, key, prompt, num_tokens, filters):
    """The twin: the whole sequence through the network for every token, in a Python loop."""
    start = prompt.shape[1]

    @jax.jit
    def step(tokens, i):
        # Causality makes the zeros to the right harmless.
        logits = model.logits(params, model.hidden(params, tokens)[:, start + i - 1])
        token = draw(jax.random.fold_in(key, i), filter_logits(logits, Filters(**filters)))
        return tokens.at[:, start + i].set(token)

    tokens = np.pad(prompt, ((0, 0), (0, num_tokens)))
    for i in range(num_tokens):
        tokens = step(tokens, i)
    return tokens


@pytest.mark.parametrize(
    ("name", "filters"),
    [("causal", {}), ("gpt2", {"temperature": 0.7, "top_k": 4, "top_p": 0.8})],
    ids=str,
)
def test_generation_equals_a_loop_without_a_cache_token_for_token(name, filters):
    model, key = MODELS[name], jax.random.key(5)
    params = _randomised(model)
    generated = generate(model, params, key, prompt=PROMPT, num_tokens=10, **filters)
    expected = _without_cache(model, params, key, PROMPT, 10, filters)
    np.testing.assert_array_equal(generated, expected)
    assert generated.dtype == np.int32


def test_greedy_generation_takes_the_most_probable_token_whatever_the_key():
    model = MODELS["causal"]
    params = _randomised(model)
    first, second = (
        generate(model, params, jax.random.key(seed), prompt=PROMPT, num_tokens=6, temperature=0.0)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, second)
    logits = jax.jit(lambda tokens: model.logits(params, model.hidden(params, tokens)))(first)
    np.testing.assert_array_equal(first[:, 2:], np.asarray(logits)[:, 1:-1].argmax(axis=-1))


def test_sampled_sequences_have_the_exact_distribution():
    """Oracle: the chain rule over all 27 continuations of 3 tokens.

    20,000 samples, seed 0: the standard error of a frequency is at most 0.0035, and the largest of
    27 deviations stays below 4 of its standard errors with probability above 0.998.
    """
    config = CausalConfig(vocab_size=3, length=4, num_layers=1, embed_dim=8, num_heads=2)
    model = CausalNetwork(config)
    params = _randomised(model)
    count = 20_000
    prompt = np.zeros((count, 1), np.int32)
    samples = np.asarray(generate(model, params, jax.random.key(0), prompt=prompt, num_tokens=3))

    sequences = np.array([(0, *rest) for rest in itertools.product(range(3), repeat=3)])
    network = jax.jit(lambda tokens: model.logits(params, model.hidden(params, tokens)))
    log_probs = log_softmax(np.asarray(network(sequences)), axis=-1)
    steps = np.take_along_axis(log_probs[:, :-1], sequences[:, 1:, None], axis=2)
    exact = np.exp(steps.sum(axis=(1, 2)))
    np.testing.assert_allclose(exact.sum(), 1.0, atol=1e-5)

    frequency = (samples[:, None, :] == sequences).all(axis=2).mean(axis=0)
    np.testing.assert_allclose(frequency.sum(), 1.0, atol=1e-9)  # neither MASK nor padding drawn
    error = np.sqrt(exact * (1 - exact) / count)
    assert (np.abs(frequency - exact) < 4 * error).all()


def test_no_tokens_asked_for_gives_the_prompt():
    model = MODELS["causal"]
    out = generate(model, _randomised(model), jax.random.key(0), prompt=PROMPT, num_tokens=0)
    np.testing.assert_array_equal(out, PROMPT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": PROMPT[:, :0]}, "prompt must be"),
        ({"num_tokens": -1}, "num_tokens must be at least 0"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_k": -3}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"num_tokens": 12}, "length=13 exceeds the 12 positions"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    model = MODELS["gpt2"]
    arguments = {"prompt": PROMPT, "num_tokens": 2, **arguments}
    with pytest.raises(ConfigError, match=message):
        generate(model, _randomised(model), jax.random.key(0), **arguments)


def test_prompts_of_other_lengths_share_the_program_that_writes():
    """Its blocks are not scanned over, so that it compiles slowly. Oracle: JAX's count of its programs."""
    model, key = MODELS["causal"], jax.random.key(5)
    params = _randomised(model)
    before = write_on._cache_size()
    for length in (1, 2, 5):
        prompt = np.tile(PROMPT, 3)[:, :length]
        generated = generate(model, params, key, prompt=prompt, num_tokens=4)
        expected = _without_cache(model, params, key, prompt, 4, {})
        np.testing.assert_array_equal(generated, expected)
    assert write_on._cache_size() == before + 1


def test_temperatures_share_the_programs():
    """A sweep compiled two programs for each. Oracles: JAX's count of its programs; no cache."""
    model, key = MODELS["causal"], jax.random.key(5)
    params, before = _randomised(model), write_on._cache_size()
    for temperature in (0.3, 0.9, 1.7):
        filters = {"temperature": temperature, "top_k": 3}
        generated = generate(model, params, key, prompt=PROMPT, num_tokens=5, **filters)
        expected = _without_cache(model, params, key, PROMPT, 5, filters)
        np.testing.assert_array_equal(generated, expected)
    assert write_on._cache_size() == before + 1
