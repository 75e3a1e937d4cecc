"""Decoding with a cache, by each causal network. Oracle: the network's states for the whole text at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.meta import unbox

from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.base import abstract_params
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


@pytest.mark.parametrize(
    ("batch", "parts"), [(2, [9]), (2, [4, 1, 1, 3]), (1, [1] * 7), (2, [3, 4])], ids=str
)
@pytest.mark.parametrize("form", ["stacked", "apart"])
@pytest.mark.parametrize("name", NETWORKS)
def test_decoding_in_parts_equals_the_full_forward(name, form, batch, parts):
    network = NETWORKS[name]
    params = noisy_params(network, 0, spread=0.3)
    whole = _whole(network, params)
    params = network.apart(params) if form == "apart" else params
    cache, start, states = network.init_cache(batch, network.config.length), 0, []
    for n in parts:
        hidden, cache = _decode(network, params, TOKENS[:batch, start : start + n], cache)
        states.append(hidden)
        start += n
    assert int(cache.used) == sum(parts)
    np.testing.assert_allclose(np.concatenate(states, axis=1), whole[:batch, :start], atol=1e-5)


def test_positions_see_what_they_are_told_to():
    """Oracle: a text that follows another in its sequence has the states that it has alone."""
    network = NETWORKS["causal"]
    params = noisy_params(network, 0, spread=0.3)
    text = np.arange(9) >= 4
    visible = (text[:, None] == text) & np.tri(9, dtype=bool)
    held, cache, states = network.apart(params), network.init_cache(2, 9), []
    for start, stop in ((0, 3), (3, 7), (7, 9)):
        old = visible[start:stop] & (np.arange(9) < start)
        among = visible[start:stop, start:stop]
        seen = np.broadcast_to(
            np.concatenate([old, among], axis=-1), (2, 1, stop - start, 9 + stop - start)
        )
        hidden, cache = network.decode(held, TOKENS[:, start:stop], cache, seen)
        states.append(hidden)
    segments = np.broadcast_to(text.astype(np.int32), (2, 9))
    whole = network.hidden(params, TOKENS, segments)
    np.testing.assert_allclose(np.concatenate(states, axis=1), whole, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_token_reads_the_cache_once_and_copies_none_of_it(batch):
    """Oracle: the compiler's count of bytes that another 64 places cost; a tenth are scores and masks."""
    network = CausalNetwork(
        CausalConfig(**SIZES | {"length": 192, "embed_dim": 96, "num_heads": 2})
    )
    params = abstract_params(network)

    def read(capacity):
        def step(params, cache):
            return network.decode(
                network.apart(unbox(params)), jnp.zeros((batch, 1), jnp.int32), cache
            )

        cache = jax.eval_shape(lambda: network.init_cache(batch, capacity))
        program = jax.jit(step, donate_argnames="cache").lower(params, cache).compile()
        return program.cost_analysis()["bytes accessed"]

    keys_and_values = batch * 3 * 2 * 96 * 4
    assert 1 <= (read(192) - read(128)) / 64 / keys_and_values < 1.2
