"""The causal transformer against an unrolled numpy twin."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import CausalConfig
from sdtt_jax.ops.categorical import NEG_INFINITY
from tests.worlds import noisy_params

CONFIG = CausalConfig(vocab_size=11, length=9, num_layers=3, embed_dim=16, num_heads=2)
MODEL = CausalNetwork(CONFIG)
PARAMS = functools.partial(noisy_params, MODEL, 0, spread=0.3)
HIDDEN = jax.jit(MODEL.hidden)
TOKENS = jax.device_put(
    np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, CONFIG.length), np.int32)
)


def _norm(x, scale):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _rotate(x):
    length, _, size = x.shape
    out = np.empty_like(x)
    for position in range(length):
        for i in range(size // 2):
            angle = position * 10_000.0 ** (-2 * i / size)
            a, b = x[position, :, i], x[position, :, i + size // 2]
            out[position, :, i] = a * np.cos(angle) - b * np.sin(angle)
            out[position, :, i + size // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def _twin_hidden(params, tokens):
    """One sequence, float64, a Python loop over layers, heads and positions."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = params["embed"]["embedding"][np.asarray(tokens)]
    for layer in range(CONFIG.num_layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        qkv = np.einsum("ld,dthk->tlhk", _norm(x, p["norm1"]["scale"]), p["attn_qkv"]["kernel"])
        query, key, value = _rotate(qkv[0]), _rotate(qkv[1]), qkv[2]
        mixed = np.zeros_like(value)
        for i in range(len(x)):
            for head in range(CONFIG.num_heads):
                scores = key[: i + 1, head] @ query[i, head] / np.sqrt(CONFIG.head_dim)
                weights = np.exp(scores - scores.max())
                mixed[i, head] = weights / weights.sum() @ value[: i + 1, head]
        x = x + np.einsum("lhk,hkd->ld", mixed, p["attn_out"]["kernel"])
        y = _norm(x, p["norm2"]["scale"])
        y = _gelu(y @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"])
        x = x + y @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    return _norm(x, params["final"]["scale"])


def test_hidden_states_equal_those_of_the_unrolled_twin():
    hidden = HIDDEN(PARAMS(), TOKENS)
    for row, tokens in zip(hidden, TOKENS, strict=True):
        np.testing.assert_allclose(row, _twin_hidden(PARAMS(), tokens), atol=2e-5)


def test_a_position_does_not_see_later_tokens():
    changed = TOKENS.at[:, 5:].set((TOKENS[:, 5:] + 1) % CONFIG.vocab_size)
    before, after = HIDDEN(PARAMS(), TOKENS), HIDDEN(PARAMS(), changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-2


def test_mask_and_padding_can_never_be_predicted():
    logits = MODEL.logits(PARAMS(), HIDDEN(PARAMS(), TOKENS))
    assert logits.shape == (2, CONFIG.length, 128)
    assert logits.dtype == jnp.float32
    assert (logits[..., CONFIG.vocab_size :] == NEG_INFINITY).all()
    assert (jax.nn.softmax(logits)[..., CONFIG.vocab_size :] == 0).all()


def test_parameters_carry_logical_axes_and_the_blocks_are_stacked():
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0))
    names = nn.get_partition_spec(boxed)
    assert names["embed"]["embedding"] == jax.P("vocab", "embed")
    assert names["head"]["linear"]["kernel"] == jax.P("embed", "vocab")
    kernel = names["blocks"]["attn_qkv"]["kernel"]
    assert kernel == jax.P("layers", "embed", None, "heads", "kv")
    for leaf in jax.tree.leaves(nn.unbox(boxed)["blocks"]):
        assert leaf.shape[0] == CONFIG.num_layers


def test_rematerialised_and_unrolled_blocks_give_the_same_gradients():
    def loss(params, model):
        return jax.nn.log_softmax(model.logits(params, model.hidden(params, TOKENS)))[..., 0].sum()

    remat = CausalNetwork(dataclasses.replace(CONFIG, remat="full", unroll=2))
    gradient = jax.jit(jax.grad(loss), static_argnames="model")
    plain, recomputed = gradient(PARAMS(), MODEL), gradient(PARAMS(), remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, recomputed)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_logits_and_parameters():
    model = CausalNetwork(dataclasses.replace(CONFIG, compute_dtype="bfloat16"))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    hidden = jax.jit(model.hidden)(PARAMS(), TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert hidden.dtype == jnp.bfloat16
    assert model.logits(PARAMS(), hidden).dtype == jnp.float32
    assert model.init_cache(1, 4).layers[0].keys.dtype == jnp.bfloat16
    # 8 bits of mantissa through 3 layers: states are of size 0.3, rounded in steps of 2^-8.
    np.testing.assert_allclose(hidden, HIDDEN(PARAMS(), TOKENS), atol=0.05)


def test_equal_configs_make_equal_models_so_that_compiled_functions_are_reused():
    again = CausalNetwork(dataclasses.replace(CONFIG))
    assert again == MODEL
    assert hash(again) == hash(MODEL)


def test_the_paper_s_baseline_has_the_size_of_the_denoiser_without_conditioning():
    """12 blocks of 12 d^2 + 5 d (MLP biases) + 2 d (norms), two tables, a bias and a final norm."""
    config = CausalConfig(vocab_size=50_257, length=1024)
    shapes = nn.unbox(jax.eval_shape(CausalNetwork(config).init, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    d, vocab = 768, 50_304
    assert count == 12 * (12 * d**2 + 7 * d) + 2 * vocab * d + vocab + d
