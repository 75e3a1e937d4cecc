"""GPT-2 against an unrolled numpy twin; published values are in tests/parity/test_gpt2.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.config import COMPUTE_DTYPES
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Denoiser, GPT2DenoiserConfig, GPT2Network
from sdtt_jax.networks.kinds import GPT2, GPT2_DENOISER, KINDS
from sdtt_jax.ops.categorical import NEG_INFINITY
from tests.worlds import noisy_params

SIZES = {"vocab_size": 13, "length": 8, "num_layers": 2, "embed_dim": 12, "num_heads": 3}
CONFIG = GPT2Config(**SIZES)
MODEL = GPT2Network(CONFIG)
TOKENS = jax.device_put(np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, 7), np.int32))
PARAMS = functools.partial(noisy_params, MODEL, 0, spread=0.3)
HIDDEN = jax.jit(MODEL.hidden)


def _norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def _twin_hidden(params, tokens):
    """One sequence in float64, a Python loop over layers, heads and positions."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tokens = np.asarray(tokens)
    x = params["embed"]["embedding"][tokens] + params["positions"]["embedding"][: len(tokens)]
    for layer in range(CONFIG.num_layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        qkv = np.einsum("ld,dthk->lthk", _norm(x, p["norm1"]), p["attn_qkv"]["kernel"])
        query, key, value = np.moveaxis(qkv + p["attn_qkv"]["bias"], 1, 0)
        mixed = np.zeros_like(value)
        for i in range(len(x)):
            for head in range(CONFIG.num_heads):
                scores = key[: i + 1, head] @ query[i, head] / np.sqrt(CONFIG.head_dim)
                weights = np.exp(scores - scores.max())
                mixed[i, head] = weights / weights.sum() @ value[: i + 1, head]
        out = np.einsum("lhk,hkd->ld", mixed, p["attn_out"]["kernel"])
        x = x + out + p["attn_out"]["bias"]
        y = _norm(x, p["norm2"]) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    return _norm(x, params["final"])


def test_hidden_states_equal_those_of_the_unrolled_twin():
    hidden = HIDDEN(PARAMS(), TOKENS)
    for row, tokens in zip(hidden, TOKENS, strict=True):
        np.testing.assert_allclose(row, _twin_hidden(PARAMS(), tokens), atol=2e-5)


def test_the_head_is_the_embedding_and_padding_is_impossible():
    hidden = HIDDEN(PARAMS(), TOKENS)
    logits = MODEL.logits(PARAMS(), hidden)
    table = PARAMS()["embed"]["embedding"][: CONFIG.vocab_size]
    np.testing.assert_allclose(logits[..., : CONFIG.vocab_size], hidden @ table.T, atol=1e-5)
    assert (logits[..., CONFIG.vocab_size :] == NEG_INFINITY).all()


@pytest.mark.parametrize("compute_dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("kind", [KINDS[GPT2], KINDS[GPT2_DENOISER]], ids=[GPT2, GPT2_DENOISER])
def test_logits_are_float32_in_every_dtype(kind, compute_dtype):
    """Oracle: NumPy in float64, on the rounded factors. A logit of 10 rounded to bfloat16 is off by 0.03."""
    config = kind.config(**SIZES, compute_dtype=compute_dtype)
    network = kind.network(config)
    hidden = 4 * HIDDEN(PARAMS(), TOKENS).astype(config.numerics.dtype)
    logits = np.asarray(jax.jit(network.logits)(PARAMS(), hidden))
    assert logits.dtype == np.float32
    factors = (
        np.asarray(jnp.asarray(x, config.numerics.products), np.float64)
        for x in (hidden, PARAMS()["embed"]["embedding"][: config.columns])
    )
    exact = np.einsum("ble,ve->blv", *factors)
    assert np.abs(exact).max() > 10
    np.testing.assert_allclose(logits[..., : config.columns], exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("compute_dtype", COMPUTE_DTYPES)
def test_the_gradient_of_mask_is_summed_over_all_its_places(compute_dtype):
    """4096 ones; their sum in bfloat16 stops at 256, because 256 + 1 is rounded to 256."""
    network = GPT2Denoiser(GPT2DenoiserConfig(**SIZES, compute_dtype=compute_dtype))
    tokens = jnp.full((512, 8), network.mask_id)

    @jax.jit
    @jax.grad
    def gradient(params):
        embedded = network._apply(params, tokens, method=lambda module, x: module.embed(x))
        return embedded.astype(jnp.float32).sum()

    found = gradient(PARAMS())["embed"]["embedding"]
    expected = np.zeros_like(found)
    expected[network.mask_id] = 4096
    np.testing.assert_array_equal(found, expected)


def test_embeddings_start_as_published_and_carry_logical_axes():
    """Normal numbers of standard deviation 0.02 (the hub's `initializer_range`)."""
    boxed = jax.jit(
        GPT2Network(GPT2Config(500, 256, num_layers=1, embed_dim=64, num_heads=4)).init
    )(jax.random.key(0))
    axes, params = nn.get_partition_spec(boxed), nn.unbox(boxed)
    assert axes["embed"]["embedding"] == jax.P("vocab", "embed")
    assert axes["positions"]["embedding"] == jax.P(None, "embed")
    for name, rows in (("embed", 512), ("positions", 256)):
        table = np.asarray(params[name]["embedding"])
        assert (table.shape, table.dtype) == ((rows, 64), np.float32)
        assert table.std() == pytest.approx(0.02, rel=0.03)


def test_more_tokens_than_position_embeddings_are_refused():
    with pytest.raises(ConfigError, match="length=9 exceeds the 8 positions"):
        MODEL.hidden(PARAMS(), jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(ConfigError, match="length=9 exceeds the 8 positions"):
        MODEL.init_cache(1, 9)


@pytest.mark.parametrize(
    ("layers", "embed", "heads", "count"),
    [(12, 768, 12, 124_439_808), (36, 1280, 20, 774_030_080)],
    ids=["gpt2", "gpt2-large"],
)
def test_published_sizes_have_their_published_number_of_parameters(layers, embed, heads, count):
    """Oracle: the counts that the hub's models report; ours differ by the padding rows alone."""
    config = GPT2Config(50_257, 1024, num_layers=layers, embed_dim=embed, num_heads=heads)
    shapes = nn.unbox(jax.eval_shape(GPT2Network(config).init, jax.random.key(0)))
    padding = (config.padded_vocab - config.vocab_size) * embed
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count + padding


def test_a_bad_epsilon_is_refused():
    with pytest.raises(ConfigError, match="norm_epsilon must be positive"):
        GPT2Config(13, 8, norm_epsilon=0.0)
