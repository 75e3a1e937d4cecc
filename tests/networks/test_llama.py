"""The Llama family. Oracle: tests/plain_llama.py, a NumPy twin with loops over positions and heads."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.causal.nll import causal_loss
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import denoising_terms
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.scaling import published_scaling
from sdtt_jax.networks.attention.rotary import RotaryScaling
from sdtt_jax.networks.config import (
    COMPUTE_DTYPES,
    LlamaConfig,
    LlamaDenoiserConfig,
    as_denoiser,
)
from sdtt_jax.networks.llama import LlamaDenoiser, LlamaNetwork
from sdtt_jax.ops.categorical import NEG_INFINITY
from tests import plain_llama
from tests.plain_llama import Plain
from tests.worlds import noisy_params

SIZES = {
    "vocab_size": 11,
    "length": 9,
    "num_layers": 2,
    "embed_dim": 12,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_dim": 20,
}
# One network has all options, the other none.
PLAIN_ONE = LlamaConfig(**SIZES)
FULL = {
    "qk_norm": True,
    "qkv_bias": True,
    "tied_head": True,
    "rotary_pairs": "neighbours",
    "rotary_share": 0.5,
    "rotary_base": 50.0,
    "rotary_scaling": RotaryScaling("llama3", factor=8.0, original_length=12),
    "norm_epsilon": 1e-2,
}
CONFIGS = {"none": PLAIN_ONE, "all": LlamaConfig(**SIZES, **FULL)}
NETWORKS = {name: LlamaNetwork(config) for name, config in CONFIGS.items()}
TOKENS = np.random.default_rng(1).integers(0, 11, (2, 9)).astype(np.int32)
HIDDEN = jax.jit(
    lambda network, params, tokens: network.hidden(params, tokens), static_argnames="network"
)


def params_of(name):
    return noisy_params(NETWORKS[name], 0, spread=0.3)


def both_ways(config, **fields):
    """A denoiser with the sizes of a causal network."""
    return LlamaDenoiser(LlamaDenoiserConfig(**vars(config), **fields))


def plain_of(config):
    return Plain(
        config.num_heads,
        config.kv_heads,
        config.head_dim,
        epsilon=config.norm_epsilon,
        base=config.rotary_base,
        neighbours=config.rotary_pairs == "neighbours",
        turned=config.rotary_dim,
        causal=config.is_causal,
        scaling=published_scaling(config.rotary_scaling).get("rope_scaling"),
    )


def plain_weights(params):
    """Our parameters as the twin's matrices."""
    params = jax.tree.map(np.asarray, params)
    layers = []
    for i in range(SIZES["num_layers"]):
        block = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        layer = {"norm1": block["norm1"]["scale"], "norm2": block["norm2"]["scale"]}
        for name in "qkv":
            for part, array in block[f"attn_{name}"].items():
                flat = array.reshape(*array.shape[:-2], -1)
                layer[name if part == "kernel" else f"{name}_bias"] = flat.T
        layer["o"] = block["attn_out"]["kernel"].reshape(-1, SIZES["embed_dim"]).T
        layer |= {name: block["mlp"][name]["kernel"].T for name in ("gate", "up", "down")}
        layer |= {name: block[name]["scale"] for name in ("q_norm", "k_norm") if name in block}
        layers.append(layer)
    weights = {
        "embed": params["embed"]["embedding"],
        "final": params["final"]["scale"],
        "layers": layers,
    }
    if "head" in params:
        weights["head"] = params["head"]["linear"]["kernel"].T
    return weights


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_logits_equal_those_of_the_plain_twin(name, causal):
    network = NETWORKS[name] if causal else both_ways(CONFIGS[name])
    params, plain = params_of(name), plain_of(network.config)
    found = HIDDEN(network, params, TOKENS)
    logits = network.logits(network.head_params(params), found)
    assert logits.dtype == jnp.float32
    real = 11 if causal else 12
    assert (logits[..., real:] == NEG_INFINITY).all()
    for row, columns, tokens in zip(found, logits, TOKENS, strict=True):
        weights = plain_weights(params)
        np.testing.assert_allclose(row, plain_llama.hidden(weights, plain, tokens), atol=3e-5)
        expected = plain_llama.logits(weights, plain, tokens)[:, :real]
        np.testing.assert_allclose(columns[:, :real], expected, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_denoiser_with_a_causal_mask_computes_what_the_causal_network_does(name):
    denoiser = both_ways(CONFIGS[name], causal=True)
    np.testing.assert_allclose(
        HIDDEN(denoiser, params_of(name), TOKENS),
        HIDDEN(NETWORKS[name], params_of(name), TOKENS),
        atol=1e-5,
    )


def test_shifted_states_stand_at_the_token_that_they_predict():
    """Oracle: the network without shift. The first token is predicted where it stands."""
    straight = HIDDEN(both_ways(PLAIN_ONE), params_of("none"), TOKENS)
    shifted = HIDDEN(both_ways(PLAIN_ONE, shift=True), params_of("none"), TOKENS)
    np.testing.assert_array_equal(shifted[:, 1:], straight[:, :-1])
    np.testing.assert_array_equal(shifted[:, 0], straight[:, 0])


@pytest.mark.parametrize("name", CONFIGS)
def test_edges_open_the_way_from_causal_to_bidirectional_attention(name):
    """With all edges closed it is the causal network, with all open the bidirectional one, else neither."""
    params, denoiser = params_of(name), both_ways(CONFIGS[name])
    hidden = jax.jit(denoiser.hidden)
    edges = np.random.default_rng(2).random((2, 9, 9))
    causal = HIDDEN(both_ways(CONFIGS[name], causal=True), params, TOKENS)
    found = {share: hidden(params, TOKENS, edges=edges < share) for share in (0.0, 0.5, 1.0)}
    np.testing.assert_allclose(found[0.0], causal, atol=1e-5)
    np.testing.assert_allclose(found[1.0], HIDDEN(denoiser, params, TOKENS), atol=1e-5)
    for other in (0.0, 1.0):
        assert np.abs(found[0.5] - found[other]).max() > 1e-2


def test_a_causal_network_becomes_a_denoiser_that_knows_mask():
    """Its new row is the mean of all tokens; on text without MASK and with a causal mask nothing changes."""
    causal, params = NETWORKS["all"], params_of("all")
    config = as_denoiser(CONFIGS["all"], shift=False)
    denoiser = LlamaDenoiser(dataclasses.replace(config, causal=True))
    adapted = denoiser.init_from(params)
    table, before = (np.asarray(p["embed"]["embedding"]) for p in (adapted, params))
    np.testing.assert_allclose(table[denoiser.mask_id], before[:11].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(table[:11], before[:11])
    logits = causal.logits(params, HIDDEN(causal, params, TOKENS))
    found = denoiser.logits(adapted, HIDDEN(denoiser, adapted, TOKENS))
    np.testing.assert_allclose(found[..., :11], logits[..., :11], atol=1e-5)


def test_parameters_carry_logical_axes():
    boxed = jax.eval_shape(NETWORKS["all"].init, jax.random.key(0))
    names = nn.get_partition_spec(boxed)
    assert names["embed"]["embedding"] == jax.P("vocab", "embed")
    blocks = names["blocks"]
    assert blocks["attn_q"]["kernel"] == jax.P("layers", "embed", "heads", "kv")
    assert blocks["attn_k"]["kernel"] == jax.P("layers", "embed", "kv_heads", "kv")
    assert blocks["attn_v"]["bias"] == jax.P("layers", "kv_heads", "kv")
    assert blocks["mlp"]["gate"]["kernel"] == jax.P("layers", "embed", "mlp")
    assert "head" not in names


def test_the_fused_head_gives_the_gradients_of_the_whole_logits():
    """Also of the embedding, which is the head too."""
    network, params, tokens = NETWORKS["all"], params_of("all"), jnp.asarray(TOKENS)

    def plain(params):
        inputs = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=1)
        logits = network.logits(params, network.hidden(params, inputs))
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probs, tokens[..., None], axis=-1).sum()

    fused = jax.jit(jax.grad(lambda params: causal_loss(network, params, tokens, bos_id=1)))
    expected = jax.jit(jax.grad(plain))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), fused(params), expected)


@functools.partial(jax.jit, static_argnums=0)
def denoising_gradient(compute_dtype):
    network = both_ways(dataclasses.replace(CONFIGS["all"], compute_dtype=compute_dtype))
    diffusion = MaskedDiffusion(network, make_schedule())

    def total(params):
        return denoising_terms(diffusion, params, TOKENS, jax.random.key(0)).total

    return jax.grad(total)(params_of("all"))


@pytest.mark.parametrize("compute_dtype", COMPUTE_DTYPES)
def test_a_denoiser_with_a_tied_head_trains_in_every_dtype(compute_dtype):
    """Oracle: the gradient in float32, within 3 %, the effect of bfloat16's steps of 2^-8 in two layers."""

    found, expected = denoising_gradient(compute_dtype), denoising_gradient("float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
    table, exact = found["embed"]["embedding"], expected["embed"]["embedding"]
    assert np.linalg.norm(table - exact) < 0.03 * np.linalg.norm(exact)


def test_rematerialised_and_unrolled_blocks_give_the_same_gradients():
    def loss(params, model):
        return jax.nn.log_softmax(model.logits(params, model.hidden(params, TOKENS)))[..., 0].sum()

    remat = LlamaNetwork(dataclasses.replace(CONFIGS["all"], remat="full", unroll=2))
    gradient = jax.jit(jax.grad(loss), static_argnames="model")
    plain, recomputed = (gradient(params_of("all"), model) for model in (NETWORKS["all"], remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, recomputed)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_logits():
    model = LlamaNetwork(dataclasses.replace(CONFIGS["all"], compute_dtype="bfloat16"))
    hidden = HIDDEN(model, params_of("all"), TOKENS)
    assert hidden.dtype == jnp.bfloat16
    assert model.logits(params_of("all"), hidden).dtype == jnp.float32
    # 8 bits of mantissa through 2 layers.
    np.testing.assert_allclose(hidden, HIDDEN(NETWORKS["all"], params_of("all"), TOKENS), atol=0.1)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        # SmolLM2-135M, Qwen3-0.6B and LLaDA-8B, as their cards count them.
        ((49_152, 30, 576, 9, 3, 64, 1536, True, False), 134_515_008),
        ((151_936, 28, 1024, 16, 8, 128, 3072, True, True), 596_049_920),
        ((126_464, 32, 4096, 32, 32, 128, 12_288, False, False), 8_015_581_184),
    ],
    ids=["smollm2", "qwen3", "llada"],
)
def test_published_sizes_have_their_published_number_of_parameters(fields, count):
    """Oracle: the counts that the hub reports; ours differ by rows of padding alone."""
    rows, layers, embed, heads, kv_heads, head_dim, mlp, tied, qk_norm = fields
    config = LlamaConfig(
        rows,
        2048,
        num_layers=layers,
        embed_dim=embed,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=mlp,
        tied_head=tied,
        qk_norm=qk_norm,
    )
    shapes = nn.unbox(jax.eval_shape(LlamaNetwork(config).init, jax.random.key(0)))
    padding = (config.padded_vocab - rows) * embed * (1 if tied else 2)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count + padding
    matrices = jax.tree_util.tree_leaves_with_path(shapes["blocks"])
    weights = sum(x.size for path, x in matrices if path[-1].key == "kernel")
    assert weights == layers * config.block_weights


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_kv_heads": 4}, "num_kv_heads=4 must divide num_heads=6"),
        ({"head_dim": 5}, "must give an even number"),
        ({"head_dim": 0, "embed_dim": 10}, "embed_dim=10 must be a multiple"),
        ({"rotary_share": 0.0}, "rotary_share must"),
        ({"rotary_pairs": "thirds"}, "rotary_pairs"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be positive"),
    ],
    ids=str,
)
def test_sizes_that_make_no_network_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        LlamaConfig(**(SIZES | change))
