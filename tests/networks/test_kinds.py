"""The table of networks. Oracles: the names that checkpoints have stored, and the networks themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from sdtt_jax.networks.base import rounded_once
from sdtt_jax.networks.config import of_same_size
from sdtt_jax.networks.exiting import EXIT_PARAMS, untrained_exits
from sdtt_jax.networks.kinds import KINDS, kind_of, stored_kind
from sdtt_jax.networks.retrieval import Datastore
from sdtt_jax.ops.noise import draw_noise
from sdtt_jax.trees import flat_leaves
from tests.worlds import noisy_params

SIZES = {"vocab_size": 5, "length": 4, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
DENOISERS = [name for name in KINDS if not issubclass(KINDS[name].network, CausalNetwork)]


@pytest.mark.parametrize("name", KINDS)
def test_a_row_makes_a_network_that_knows_its_kind(name):
    kind = KINDS[name]
    network = kind.network(kind.config(**SIZES))
    assert kind_of(network) == name
    assert network.head_params(jax.eval_shape(network.init, jax.random.key(0)))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("name", DENOISERS)
def test_a_position_free_network_sees_no_positions_in_a_text_of_masks(name, shift):
    """And one that does is not called so, as a GPT-2, which adds an embedding of the position.

    Oracle: the states of the whole text.
    """
    kind = KINDS[name]
    fields = {"shift": shift} if hasattr(kind.config, "shift") else {}
    network = kind.network(kind.config(**SIZES, **fields))
    params, masks = noisy_params(network, 0, spread=0.5), jnp.full((2, 4), network.mask_id)
    every, one = (np.asarray(network.hidden(params, x)) for x in (masks, masks[:, :1]))
    alike = np.abs(every - one).max() < 1e-5
    assert alike == getattr(network, "position_free", False)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_that_are_rounded_once_give_the_logits_that_they_gave(name):
    kind = KINDS[name]
    network = kind.network(kind.config(**SIZES, compute_dtype="bf16_bf16_f32"))
    params = noisy_params(network, 0, spread=0.5)
    once = rounded_once(network.config, params)
    dtypes = {path: leaf.dtype for path, leaf in flat_leaves(once).items()}
    if "blocks" in params:  # as in all networks here; one's own may have other parameters
        assert dtypes["blocks/mlp/up/kernel"] == dtypes["blocks/attn_out/kernel"] == jnp.bfloat16
    assert dtypes.get("blocks/adaln/linear/kernel", jnp.float32) == jnp.float32
    assert all(d == jnp.float32 for path, d in dtypes.items() if not path.endswith("/kernel"))

    @jax.jit
    def logits(params):
        tokens = jnp.arange(4)[None]
        inputs = {}
        if getattr(network, "noise_kind", None):
            inputs["noise"] = draw_noise(jax.random.key(1), (1, 4), 5, network.noise_kind)
        return network.logits(params, network.hidden(params, tokens, **inputs))

    # The same products in another program, which may sum in another order.
    ours, theirs = (np.asarray(logits(p))[..., :5] for p in (once, params))
    np.testing.assert_allclose(ours, theirs, atol=0.02 * theirs.std())
    for compute_dtype in ("float32", "bfloat16"):
        assert rounded_once(kind.config(**SIZES, compute_dtype=compute_dtype), params) is params


def test_the_kernels_of_a_network_within_another_are_rounded_and_nothing_else_is():
    """Parameters of `Retrieving` around those of `Exiting`. Oracle: the parameters of the network alone."""
    network = Denoiser(DenoiserConfig(**SIZES, compute_dtype="bf16_bf16_f32"))
    params = noisy_params(network, 0)
    store = Datastore(jnp.ones((2, 8)), jnp.zeros(2, jnp.int32), jnp.ones(2, bool))
    exits = untrained_exits(network.config)
    around = {"network": params | {EXIT_PARAMS: exits}, "store": store}
    once = rounded_once(network.config, around)
    expected = {
        "network": rounded_once(network.config, params) | {EXIT_PARAMS: exits},
        "store": store,
    }
    assert expected["network"]["blocks"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert jax.tree.structure(once) == jax.tree.structure(around)
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (once, expected)]
    assert dtypes[0] == dtypes[1]


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
