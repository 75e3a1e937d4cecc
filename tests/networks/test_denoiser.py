"""The denoiser as two pure functions.

Its numbers are checked against the reference's in tests/parity, its promises here. Oracles: a loop over the
blocks without scan, and definitions.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.attention import rotary_tables
from sdtt_jax.networks.config import DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser, DenoiserBlock, FinalNorm, SigmaMap, time_features
from sdtt_jax.ops.categorical import NEG_INFINITY
from tests.worlds import noisy_params

CONFIG = DenoiserConfig(
    vocab_size=10, length=6, num_layers=3, embed_dim=16, num_heads=2, cond_dim=8
)
MODEL = Denoiser(CONFIG)
TOKENS = np.random.default_rng(9).integers(0, 11, (2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return noisy_params(MODEL, 0, spread=0.3)


@functools.partial(jax.jit, static_argnames="model")
def _hidden(model, params, tokens=TOKENS, sigma=None):
    return model.hidden(params, tokens, sigma)


@functools.partial(jax.jit, static_argnames="model")
def _logits(model, params, tokens=TOKENS, sigma=None):
    return model.logits(params, model.hidden(params, tokens, sigma))


@functools.partial(jax.jit, static_argnames="model")
def _loss_and_gradient(model, params):
    def loss(params):
        logits = model.logits(params, model.hidden(params, TOKENS))
        return jnp.square(logits[..., :11]).mean()

    return jax.value_and_grad(loss)(params)


def test_shapes_and_impossible_padding(params):
    hidden, logits = _hidden(MODEL, params), np.asarray(_logits(MODEL, params))
    assert hidden.shape == (2, 6, 16)
    assert MODEL.padded_vocab == 128
    assert logits.shape == (2, 6, 128)
    assert logits.dtype == jnp.float32
    assert MODEL.mask_id == 10
    assert (logits[..., 11:] == NEG_INFINITY).all()
    assert (np.abs(logits[..., :11]) < 1e3).all()


def test_a_fresh_network_predicts_every_token_alike():
    fresh = nn.unbox(jax.jit(MODEL.init)(jax.random.key(0)))
    assert (np.asarray(_logits(MODEL, fresh))[..., :11] == 0).all()


@pytest.mark.parametrize("time_conditioned", [False, True])
def test_scanned_blocks_equal_the_blocks_one_by_one(params, time_conditioned):
    config = dataclasses.replace(CONFIG, time_conditioned=time_conditioned)
    sigma = np.array([0.3, 2.0], np.float32)
    seen = sigma if time_conditioned else np.zeros(1, np.float32)

    @jax.jit
    def one_by_one(params):
        condition = SigmaMap(8).apply({"params": params["sigma_map"]}, seen)
        x = params["embed"]["embedding"][TOKENS]
        shared = (condition, *rotary_tables(jnp.arange(6), 8), None, None)
        for layer in range(config.num_layers):
            weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
            x, _ = DenoiserBlock(config).apply({"params": weights}, x, None, shared)
        return FinalNorm(config).apply({"params": params["final"]}, x, condition)

    expected = one_by_one(params)
    hidden = _hidden(Denoiser(config), params, TOKENS, sigma)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_sigma_matters_only_where_the_network_is_time_conditioned(params):
    timed = Denoiser(dataclasses.replace(CONFIG, time_conditioned=True))
    low, high = np.zeros(2, np.float32), np.full(2, 3.0, np.float32)
    np.testing.assert_array_equal(
        _logits(MODEL, params, sigma=low), _logits(MODEL, params, sigma=high)
    )
    at_low, at_high = (np.asarray(_logits(timed, params, sigma=sigma)) for sigma in (low, high))
    assert (at_low != at_high).any()
    np.testing.assert_allclose(at_low, _logits(MODEL, params), atol=1e-5)


def test_every_position_sees_every_other(params):
    before = np.asarray(_hidden(MODEL, params))
    for changed in range(6):
        tokens = TOKENS.copy()
        tokens[:, changed] = (tokens[:, changed] + 1) % 11
        moved = np.abs(_hidden(MODEL, params, tokens) - before).max(axis=-1)
        assert (moved > 1e-5).all()


def test_parameters_carry_logical_axes_and_the_blocks_are_stacked():
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0))
    specs = nn.get_partition_spec(boxed)
    assert tuple(specs["embed"]["embedding"]) == ("vocab", "embed")
    qkv = specs["blocks"]["attn_qkv"]["kernel"]
    assert tuple(qkv) == ("layers", "embed", None, "heads", "kv")
    assert nn.unbox(boxed)["blocks"]["attn_qkv"]["kernel"].shape == (3, 16, 3, 2, 8)


@pytest.mark.parametrize(
    "fields", [{"remat": "full"}, {"remat": "none"}, {"unroll": 2}, {"unroll": 9}]
)
def test_how_blocks_are_compiled_changes_no_gradient(params, fields):
    other = Denoiser(dataclasses.replace(CONFIG, **fields))
    _, expected = _loss_and_gradient(MODEL, params)
    _, found = _loss_and_gradient(other, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_logits(params):
    model = Denoiser(dataclasses.replace(CONFIG, compute_dtype="bfloat16"))
    assert _hidden(model, params).dtype == jnp.bfloat16
    logits = _logits(model, params)
    assert logits.dtype == jnp.float32
    exact = np.asarray(_logits(MODEL, params))[..., :11]
    assert np.abs(np.asarray(logits)[..., :11] - exact).mean() < 0.05 * exact.std()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_narrow_products_compute_in_float32_and_are_nearer_than_bfloat16(params):
    """Oracle: loss and gradient of the network in float32, for both ways of rounding."""

    exact, exact_gradient = jax.device_get(_loss_and_gradient(MODEL, params))

    def distances(name):
        model = Denoiser(dataclasses.replace(CONFIG, compute_dtype=name))
        loss, gradient = jax.device_get(_loss_and_gradient(model, params))
        leaves = zip(jax.tree.leaves(gradient), jax.tree.leaves(exact_gradient), strict=True)
        return abs(loss - exact), sum(np.square(a - b).sum() for a, b in leaves)

    model = Denoiser(dataclasses.replace(CONFIG, compute_dtype="bf16_bf16_f32"))
    assert jax.eval_shape(model.hidden, params, TOKENS).dtype == jnp.float32
    narrow, half = distances("bf16_bf16_f32"), distances("bfloat16")
    assert 0 < narrow[0] < half[0]
    assert 0 < narrow[1] < half[1] / 2


def test_time_features():
    sigma = np.array([0.0, 0.7, 5.0])
    frequency = 10_000.0 ** (-np.arange(128) / 128)
    angle = sigma[:, None] * frequency
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(time_features(jnp.asarray(sigma)), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("layers", "embed", "heads", "millions"), [(12, 768, 12, 169.5), (24, 1536, 16, 863)]
)
def test_published_sizes(layers, embed, heads, millions):
    """By shapes alone. Oracle: the papers' "small" (170M) and "large" (863M)."""
    config = DenoiserConfig(50_257, 1024, layers, embed, heads)
    shapes = jax.eval_shape(Denoiser(config).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_equal_configs_make_equal_denoisers_so_that_compiled_functions_are_reused():
    assert Denoiser(CONFIG) == MODEL
    assert hash(Denoiser(CONFIG)) == hash(MODEL)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"embed_dim": 18}, "embed_dim=18 must be a multiple"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": 1.5}, "num_layers must be a whole number, not 1.5"),
        ({"length": 8.5}, "length must be a whole number, not 8.5"),
        ({"compute_dtype": "float16"}, "compute_dtype"),
        ({"remat": "some"}, "remat"),
        ({"unroll": 0}, "unroll"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: {"params": p}, r"params: blocks/.* is missing \(params\['params'\] has the"),
        (
            lambda p: {n: p[n] for n in p if n not in ("embed", "head")},
            "embed/embedding is missing; with",
        ),
        (
            lambda p: {n: p[n] for n in p if n != "blocks"},
            "blocks/.* is missing; with num_layers=3",
        ),
        (
            lambda p: p | {"blocks": jax.tree.map(lambda leaf: leaf[:2], p["blocks"])},
            r"blocks/.* is of shape \[2, .*num_layers=3 .* one of \[3, ",
        ),
        (
            lambda p: p | {"embed": {"embedding": p["embed"]["embedding"][:, :8]}},
            r"embed/embedding is of shape \[128, 8\]; .*embed_dim=16 .* one of \[128, 16\]",
        ),
    ],
    ids=["within-params", "no-head", "no-blocks", "fewer-layers", "narrower"],
)
def test_parameters_of_another_form_are_named(params, change, said):
    """They were a KeyError, or Flax's words about its scopes. Oracle: the network's config."""
    with pytest.raises(ConfigError, match=said):
        MODEL.hidden(change(params), TOKENS)
    if "head" not in change(params):
        with pytest.raises(ConfigError, match="is missing"):
            MODEL.head_params(change(params))
