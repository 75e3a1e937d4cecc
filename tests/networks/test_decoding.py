"""Decoding with a cache, by each causal network. Oracle: the network's states for the whole text at once."""

import functools

import jax
import numpy as np
import pytest

from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.config import LlamaConfig
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.networks.llama import LlamaNetwork
from tests.worlds import noisy_params

SIZES = {"vocab_size": 11, "length": 9, "num_layers": 3, "embed_dim": 12, "num_heads": 3}
NETWORKS = {
    "causal": CausalNetwork(CausalConfig(**SIZES)),
    "gpt2": GPT2Network(GPT2Config(**SIZES)),
    "llama": LlamaNetwork(LlamaConfig(**SIZES | {"num_heads": 6}, num_kv_heads=2, qk_norm=True)),
}


TOKENS = np.random.default_rng(1).integers(0, 11, (2, 9)).astype(np.int32)


@functools.partial(jax.jit, static_argnames="network")
def _whole(network, params):
    return network.hidden(params, TOKENS)


@functools.partial(jax.jit, static_argnames="network")
def _decode(network, params, tokens, cache):
    return network.decode(params, tokens, cache)


@pytest.mark.parametrize("parts", [[9], [4, 1, 1, 3], [1] * 7, [3, 4]], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_decoding_in_parts_equals_the_full_forward(name, parts):
    network = NETWORKS[name]
    params = noisy_params(network, 0, spread=0.3)
    whole = _whole(network, params)
    cache, start, states = network.init_cache(2, network.config.length), 0, []
    for n in parts:
        hidden, cache = _decode(network, params, TOKENS[:, start : start + n], cache)
        states.append(hidden)
        start += n
    assert int(cache.used) == sum(parts)
    np.testing.assert_allclose(np.concatenate(states, axis=1), whole[:, :start], atol=1e-5)
