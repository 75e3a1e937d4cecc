"""The table of networks. Oracles: the names that checkpoints have stored, and the networks themselves."""

import jax
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from sdtt_jax.networks.config import of_same_size
from sdtt_jax.networks.kinds import KINDS, kind_of, stored_kind

SIZES = {"vocab_size": 5, "length": 4, "num_layers": 1, "embed_dim": 8, "num_heads": 2}


@pytest.mark.parametrize("name", KINDS)
def test_a_row_makes_a_network_that_knows_its_kind(name):
    kind = KINDS[name]
    network = kind.network(kind.config(**SIZES))
    assert kind_of(network) == name
    assert network.head_params(jax.eval_shape(network.init, jax.random.key(0)))


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        ("denoiser", "denoiser"),
        ("causal", "causal"),
        ("gpt2", "gpt2"),
        ("autoregressive", "causal"),
        ("mamba", None),
        (None, None),
    ],
)
def test_the_names_that_checkpoints_store(stored, kind):
    assert stored_kind(stored) == kind


@pytest.mark.parametrize("network", [Denoiser, CausalNetwork])
def test_a_network_needs_vocabulary_and_length(network):
    config = DenoiserConfig if network is Denoiser else CausalConfig
    with pytest.raises(ConfigError, match="vocab_size must be positive, not 0"):
        network(config(length=4))
    with pytest.raises(ConfigError, match="length must be positive, not 0"):
        network(config(vocab_size=4))


def test_another_kind_of_the_same_size():
    denoiser = DenoiserConfig(**SIZES, mlp_ratio=2, compute_dtype="bfloat16", cond_dim=3)
    causal = of_same_size(CausalConfig, denoiser)
    assert causal == CausalConfig(**SIZES, mlp_ratio=2, compute_dtype="bfloat16")
