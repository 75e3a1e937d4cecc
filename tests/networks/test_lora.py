"""Adapters. Oracle: the network with the sums of products in its matrices, made here in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from sdtt_jax.networks.config import LlamaDenoiserConfig
from sdtt_jax.networks.exiting import layer_by_layer
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.networks.llama import LlamaDenoiser
from sdtt_jax.networks.lora import (
    LoraConfig,
    check_targets,
    frozen,
    init_adapters,
    merged,
    with_adapters,
)
from sdtt_jax.parallel.mesh import RULES, MeshConfig, make_mesh
from sdtt_jax.parallel.placement import tree_shardings, unbox
from sdtt_jax.trees import flat_leaves
from tests.worlds import noisy_params

SIZES = {"vocab_size": 11, "length": 6, "num_layers": 2, "embed_dim": 16, "num_heads": 4}
LORA = LoraConfig(rank=3, alpha=6.0)
LLAMA = LlamaDenoiser(LlamaDenoiserConfig(**SIZES, num_kv_heads=2, qkv_bias=True, shift=True))
NETWORKS = {
    "denoiser": Denoiser(DenoiserConfig(**SIZES, cond_dim=8)),
    "llama": LLAMA,
    "causal": CausalNetwork(CausalConfig(**SIZES)),
    "gpt2": GPT2Network(GPT2Config(**SIZES)),
}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6)).astype(np.int32)
# The number of axes that a linear map sums over, after that of the layers, where it is not 1.
INPUTS = {"attn_out": 2}


def trained_adapters(network, config=LORA, spread=0.3):
    """Adapters without a part that is zero."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: x + np.float32(spread) * rng.standard_normal(x.shape, np.float32),
        fresh_adapters(network, config),
    )


def fresh_adapters(network, config=LORA):
    init = jax.jit(lambda key: unbox(init_adapters(network, config, key)))
    return jax.device_get(init(jax.random.key(1)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_merged_adapters_compute_what_adapters_beside_the_base_do(kind):
    network = NETWORKS[kind]
    base, adapters = jax.device_get(noisy_params(network, 0)), trained_adapters(network)
    leaves = flat_leaves(base)
    for path, a in flat_leaves(adapters).items():
        if path.endswith("/b"):
            continue
        where, b = path.removesuffix("/a"), flat_leaves(adapters)[f"{path.removesuffix('a')}b"]
        count = INPUTS.get(where.split("/")[-1], 1)
        products = [np.tensordot(x, y, axes=1) for x, y in zip(np.asarray(a), b, strict=True)]
        assert np.asarray(a).ndim == count + 2
        leaves[f"{where}/kernel"] = leaves[f"{where}/kernel"] + 6.0 / 3 * np.stack(products)
    hidden = jax.jit(network.hidden)
    beside = np.asarray(hidden(with_adapters(base, adapters, LORA), TOKENS))
    together = jax.jit(merged, static_argnames="config")(base, adapters, config=LORA)
    for path, leaf in flat_leaves(together).items():
        np.testing.assert_allclose(leaf, leaves[path], rtol=1e-5, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(beside, hidden(together, TOKENS), atol=1e-5)
    assert np.abs(beside - np.asarray(hidden(base, TOKENS))).max() > 0.1


def test_states_between_the_blocks_have_the_adapters_of_those_blocks():
    """Oracle: `merged`, which is compared with NumPy above; a block beyond the first has its own adapter."""
    network = NETWORKS["denoiser"]
    base, adapters = jax.device_get(noisy_params(network, 0)), trained_adapters(network)
    beside = with_adapters(base, adapters, LORA)
    together = jax.jit(merged, static_argnames="config")(base, adapters, config=LORA)
    first = jax.jit(lambda params: network.layer_states(params, TOKENS, 1))
    every = jax.jit(lambda params: layer_by_layer(network, params, TOKENS)[0])
    for states in (first, every):
        np.testing.assert_allclose(states(beside), states(together), rtol=1e-4, atol=1e-4)
        assert np.abs(np.asarray(states(beside)) - states(base)).max() > 0.1


def test_fresh_adapters_change_nothing_and_only_targets_have_them():
    base = noisy_params(LLAMA, 0)
    hidden = jax.jit(LLAMA.hidden)
    beside = hidden(with_adapters(base, fresh_adapters(LLAMA), LORA), TOKENS)
    np.testing.assert_array_equal(beside, hidden(base, TOKENS))
    first = flat_leaves(fresh_adapters(LLAMA))
    up, gate = (first[f"blocks/mlp/{name}/a"] for name in ("up", "gate"))
    assert up.shape == gate.shape
    assert (up != gate).all(), "each is drawn by itself"
    some = fresh_adapters(LLAMA, dataclasses.replace(LORA, targets=("attn_q",)))
    assert {path: leaf.shape for path, leaf in flat_leaves(some).items()} == {
        "blocks/attn_q/a": (2, 16, 3),
        "blocks/attn_q/b": (2, 3, 4, 4),
    }


def test_a_base_in_bfloat16_has_narrow_matrices_and_the_logits_of_the_rounded_ones():
    config = dataclasses.replace(LORA, base_dtype="bfloat16")
    base = jax.jit(frozen, static_argnames="config")(noisy_params(LLAMA, 0), config=config)
    narrow = {path for path, leaf in flat_leaves(base).items() if leaf.dtype == jnp.bfloat16}
    assert narrow == {
        f"blocks/{name}/kernel"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out", "mlp/gate", "mlp/up", "mlp/down")
    }
    adapters = trained_adapters(LLAMA)
    together = jax.jit(merged, static_argnames="config")(base, adapters, config=config)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(together)} == {"float32"}
    hidden = jax.jit(LLAMA.hidden)
    beside = hidden(with_adapters(base, adapters, config), TOKENS)
    np.testing.assert_allclose(beside, hidden(together, TOKENS), atol=1e-5)


def test_adapters_are_split_as_the_matrices_that_they_stand_beside():
    """By the rules, on a mesh of one device."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    boxed = jax.eval_shape(lambda: init_adapters(LLAMA, LORA, jax.random.key(0)))
    specs = {p: tuple(s.spec) for p, s in flat_leaves(tree_shardings(boxed, RULES, mesh)).items()}
    assert specs["blocks/attn_q/a"] == (None, "fsdp", None)
    assert specs["blocks/attn_q/b"] == (None, None, "model", None)
    assert specs["blocks/attn_out/a"] == (None, "model", None, None)
    assert specs["blocks/attn_out/b"] == (None, None, "fsdp")
    assert specs["blocks/mlp/down/a"] == (None, "model", None)


def test_no_gradient_of_the_size_of_a_matrix_is_computed():
    """XLA's count of a gradient's operations: two products for a frozen matrix, three for another."""
    network = dataclasses.replace(
        LLAMA, config=dataclasses.replace(LLAMA.config, embed_dim=128, remat="none", unroll=2)
    )
    shapes = jax.eval_shape(lambda: unbox(network.init(jax.random.key(0))))
    adapters = jax.eval_shape(lambda: unbox(init_adapters(network, LORA, jax.random.key(0))))
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)

    def operations(loss, *trees):
        compiled = jax.jit(jax.grad(loss)).lower(*trees, tokens).compile()
        return compiled.cost_analysis()["flops"]

    whole = operations(lambda p, x: network.hidden(p, x).sum(), shapes)
    part = operations(
        lambda a, p, x: network.hidden(with_adapters(p, a, LORA), x).sum(), adapters, shapes
    )
    matrices = (
        2
        * 8
        * 64
        * sum(
            x.size
            for path, x in flat_leaves(shapes).items()
            if path.endswith("kernel") and "blocks" in path
        )
    )
    # Less the adapters' own products, of rank 3 beside widths of 128.
    assert whole - part > 0.7 * matrices


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "rank must be at least 0, not -1"),
        ({"targets": ("attn_k", "query")}, "targets='query' is unknown"),
        ({"targets": ()}, "name at least one"),
        ({"base_dtype": "int8"}, "base_dtype='int8'"),
    ],
)
def test_settings_that_make_no_adapters_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(LORA, **fields)


def test_targets_that_a_network_lacks_are_named():
    """The names to choose from used to be those of all networks, the refused one among them."""
    named = r"no linear map of a GPT2Network; choose from: attn_qkv, attn_out, up, down\.$"
    for use in (check_targets, functools.partial(init_adapters, key=jax.random.key(0))):
        with pytest.raises(ConfigError, match=named):
            use(NETWORKS["gpt2"], LoraConfig(2, targets=("attn_q",)))
