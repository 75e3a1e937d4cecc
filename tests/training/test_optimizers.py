"""Schedules against their formulas, and which rule moves which leaf."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.config import DenoiserConfig, LlamaConfig
from sdtt_jax.networks.kinds import network_of
from sdtt_jax.networks.lora import LoraConfig, init_adapters
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.training import optimizers as opt
from sdtt_jax.trees import flat_leaves, leaf_name
from tests.training import toy

MUON = {
    "blocks/attn_qkv/kernel",
    "blocks/attn_out/kernel",
    "blocks/mlp/up/kernel",
    "blocks/mlp/down/kernel",
}


@pytest.fixture(scope="module")
def params():
    return unbox(jax.jit(toy.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def grads(params):
    return jax.tree.map(lambda x: np.sin(7.0 * np.asarray(x)), params)


def test_the_paper_s_schedule_rises_for_500_updates_and_stays():
    rate = jax.jit(opt.learning_rate_schedule(opt.OptimizerConfig(), num_steps=10_000))
    np.testing.assert_allclose(rate(jnp.int32(0)), 0.0)
    np.testing.assert_allclose(rate(jnp.int32(250)), 3e-5, rtol=1e-6)
    np.testing.assert_allclose(rate(jnp.int32(500)), 6e-5, rtol=1e-6)
    np.testing.assert_allclose(rate(jnp.int32(9_999)), 6e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "early"), [("linear", 0.75), ("cosine", 0.5 * (1 + np.cos(np.pi / 4)))]
)
def test_decaying_schedules_reach_zero_at_the_last_step(schedule, early):
    """Halfway, both are at half of the peak; after a quarter they are apart."""
    config = opt.OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10)
    rate = jax.jit(opt.learning_rate_schedule(config, num_steps=110))
    np.testing.assert_allclose(rate(jnp.int32(10)), 1.0)
    np.testing.assert_allclose(rate(jnp.int32(35)), early, rtol=1e-5)
    np.testing.assert_allclose(rate(jnp.int32(60)), 0.5, rtol=1e-5)
    np.testing.assert_allclose(rate(jnp.int32(110)), 0.0, atol=1e-7)


def test_muon_takes_the_matrices_of_the_blocks_and_adam_the_rest(params):
    numbers = flat_leaves(
        jax.tree.map(
            lambda x: "adam" if x is None else "muon",
            opt.muon_dimension_numbers(params),
            is_leaf=lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers),
        )
    )
    assert {path for path, rule in numbers.items() if rule == "muon"} == MUON


@pytest.fixture(scope="module")
def muons(params, grads):
    """Muon's first updates."""
    config = opt.OptimizerConfig(
        "muon", learning_rate=1.0, adam_learning_rate=0.25, warmup_steps=0, clip_norm=0.0
    )
    optimizer = opt.make_optimizer(config, 10)
    return jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p)[0])(params, grads)


def test_muon_s_updates_are_orthogonal_matrices_of_adam_s_size(muons):
    """Oracle: singular values. Newton-Schulz with 5 steps leaves them in about [0.7, 1.2], times
    0.2 sqrt(max(in, out)) for an RMS of 0.2 (arXiv 2502.16982)."""
    blocks = muons["blocks"]
    qkv = np.moveaxis(np.asarray(blocks["attn_qkv"]["kernel"]), 2, 1)
    matrices = {
        "query, key, value": qkv.reshape(2, 3, toy.EMBED, toy.HEADS * toy.KV),
        "attention's output": np.asarray(blocks["attn_out"]["kernel"]).reshape(2, -1, toy.EMBED),
        "mlp up": np.asarray(blocks["mlp"]["up"]["kernel"]),
        "mlp down": np.asarray(blocks["mlp"]["down"]["kernel"]),
    }
    for name, matrix in matrices.items():
        scale = 0.2 * np.sqrt(max(matrix.shape[-2:]))
        values = np.linalg.svd(matrix, compute_uv=False) / scale
        assert values.max() < 1.3, name
        assert np.median(values) > 0.6, name


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_muon_s_updates_of_separate_queries_and_keys_are_orthogonal(num_kv_heads):
    """Oracle: singular values, as above. Llama's kernels [embed, heads, kv] used to be taken for attention's
    output: values of a query's update went from 0.02 to 2. No matrix is square: random square ones have
    values that Newton-Schulz does not reach."""
    embed, kv, heads = 32, 12, {"attn_q": 4, "attn_k": num_kv_heads, "attn_v": num_kv_heads}
    sizes = {"vocab_size": 40, "length": 16, "num_layers": 2, "embed_dim": embed, "head_dim": kv}
    config = LlamaConfig(**sizes, num_heads=4, num_kv_heads=num_kv_heads)
    shapes = unbox(abstract_params(network_of(config)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    grads = tree.unflatten([rng.normal(size=x.shape).astype(np.float32) for x in leaves])
    optimizer = opt.make_optimizer(
        opt.OptimizerConfig("muon", learning_rate=1.0, warmup_steps=0, clip_norm=0.0), 10
    )
    blocks = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g)[0])(grads)["blocks"]
    matrices = {
        name: np.asarray(blocks[name]["kernel"]).reshape(2, embed, kv * count)
        for name, count in heads.items()
    }
    matrices["attn_out"] = np.asarray(blocks["attn_out"]["kernel"]).reshape(2, 4 * kv, embed)
    for name, matrix in matrices.items():
        scale = 0.2 * np.sqrt(max(matrix.shape[-2:]))
        values = np.linalg.svd(matrix, compute_uv=False) / scale
        assert values.max() < 1.3, name
        assert values.min() > 0.6, name


@pytest.fixture(scope="module")
def adapters():
    """Shapes of every kind of adapter: of kernels with one, two and three axes of input or output."""
    net = network_of(DenoiserConfig(20, length=8, num_layers=2, embed_dim=16, num_heads=2))
    init = functools.partial(init_adapters, net, LoraConfig(rank=3))
    return unbox(jax.eval_shape(init, jax.random.key(0)))


def test_adapters_are_matrices_for_weight_decay_and_for_muon(adapters):
    """Oracle: PEFT and torch, which decay LoRA's matrices as others; Muon's matrices hold all of a leaf, and
    the adapter's rank is one side. Neither setting did anything: these leaves are not named kernel."""
    assert all(jax.tree.leaves(opt.decays(adapters)))
    shapes, found = flat_leaves(adapters), opt.muon_dimension_numbers(adapters)
    is_leaf = lambda x: isinstance(x, optax.contrib.MuonDimensionNumbers)  # noqa: E731
    for path, axes in jax.tree_util.tree_leaves_with_path(found, is_leaf=is_leaf):
        name = leaf_name(path)
        shape = shapes[name].shape
        sides = [[shape[axis] for axis in side] for side in (axes.reduction_axis, axes.output_axis)]
        assert sides[name.endswith("/a")] == [3], name
        batch = 3 if name == "blocks/attn_qkv/b" else 1  # query, key and value
        assert math.prod(map(math.prod, sides)) * 2 * batch == math.prod(shape), name
    assert jax.tree.structure(found, is_leaf=is_leaf) == jax.tree.structure(adapters)


def test_leaves_of_a_network_with_other_names_decay_by_their_rank():
    """Oracle: `weight_decay` is documented as "on matrices only"."""
    one, two, three = (np.ones((4,) * rank, np.float32) for rank in (1, 2, 3))
    own = {"w": two, "c": one, "norm": {"weight": one}, "blocks": {"w": three, "gain": two}}
    spared = {"bias": two, "scale": two, "noise": {"values": two}}
    decayed = {path for path, on in flat_leaves(opt.decays(own | spared)).items() if on}
    assert decayed == {"w", "blocks/w"}


def test_muon_is_refused_where_it_would_update_nothing():
    with pytest.raises(ConfigError, match="under a group named blocks"):
        opt.make_optimizer(opt.OptimizerConfig("muon"), 10).init({"w": np.ones((4, 4))})


def test_muon_leaves_the_rest_to_adam_at_its_own_rate(params, grads, muons):
    """Oracle: optax.adamw with Nesterov moments, which is what Muon's Adam part is."""
    adam = optax.adamw(0.25, nesterov=True, weight_decay=0.0)
    expected = jax.jit(lambda p, g: adam.update(g, adam.init(p), p)[0])(params, grads)
    expected = flat_leaves(expected)
    for path, update in flat_leaves(muons).items():
        if path not in MUON:
            np.testing.assert_allclose(update, expected[path], rtol=1e-5, err_msg=path)


def test_each_setting_of_muon_is_that_of_its_part(params, grads):
    """Oracle: the leaves that it changes in the second of two updates: Muon's own, or all others."""
    changed = {"momentum": 0.5, "weight_decay": 0.1, "b1": 0.5, "b2": 0.5}

    def second_update(**fields):
        config = opt.OptimizerConfig("muon", warmup_steps=0, clip_norm=0.0, **fields)
        optimizer = opt.make_optimizer(config, 10)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        return optimizer.update(jax.tree.map(jnp.sin, grads), state, params)[0]

    usual, *others = map(
        flat_leaves,
        jax.device_get(
            jax.jit(
                lambda: [second_update(), *(second_update(**{k: x}) for k, x in changed.items())]
            )()
        ),
    )
    for name, updates in zip(changed, others, strict=True):
        moved = {path for path, leaf in updates.items() if (leaf != usual[path]).any()}
        own = name in ("momentum", "weight_decay")
        assert moved == (MUON if own else usual.keys() - MUON), name


def test_weight_decay_spares_biases_and_norms(params):
    decayed = {path for path, on in flat_leaves(opt.decays(params)).items() if on}
    assert "blocks/norm1/scale" not in decayed
    assert "blocks/adaln/bias" not in decayed
    assert decayed > MUON

    config = opt.OptimizerConfig("adamw", learning_rate=0.5, warmup_steps=0, weight_decay=0.1)
    optimizer = opt.make_optimizer(config, 10)
    zero = jax.tree.map(np.zeros_like, params)
    state = jax.jit(optimizer.init)(params)
    updates = flat_leaves(jax.jit(optimizer.update)(zero, state, params)[0])
    for path, leaf in flat_leaves(jax.device_get(params)).items():
        expected = -0.5 * 0.1 * leaf if path in decayed else np.zeros_like(leaf)
        np.testing.assert_allclose(updates[path], expected, rtol=1e-6, atol=1e-9, err_msg=path)


def test_the_gradient_is_clipped_before_anything_else(params, grads):
    config = opt.OptimizerConfig(warmup_steps=0, clip_norm=0.5)
    optimizer = opt.make_optimizer(config, 10)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)

    def after(length):
        scaled = jax.tree.map(lambda g: g * np.float32(length / norm), grads)
        return flat_leaves(update(scaled, state, params)[1])

    longest, half = after(0.5), after(0.25)
    for length in (norm, 0.6):
        for path, leaf in after(length).items():
            np.testing.assert_allclose(leaf, longest[path], rtol=1e-5, err_msg=path)
    [first_moment] = (path for path in half if path.endswith("mu/head/linear/kernel"))
    np.testing.assert_allclose(2 * half[first_moment], longest[first_moment], rtol=1e-5)


def test_the_norm_of_bfloat16_leaves_is_that_of_float32():
    """Oracle: 16, 1, …, 1 have the norm sqrt(256 + 8); it was 16, and what was clipped to 1 had 1.016."""
    grads = {f"w{i}": jnp.full((), 1.0 if i else 16.0, jnp.bfloat16) for i in range(9)}
    np.testing.assert_allclose(opt.global_norm(grads), math.sqrt(264), rtol=1e-6)
    clipped, _ = opt.clip_by_norm(1.0).update(grads, optax.EmptyState())
    np.testing.assert_allclose(opt.global_norm(clipped), 1.0, rtol=4e-3)
    known, _ = opt.clip_by_norm(1.0).update(grads, optax.EmptyState(), grad_norm=jnp.float32(2))
    jax.tree.map(lambda x, g: np.testing.assert_array_equal(x, g / 2), known, grads)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_bfloat16_parameters_are_updated_as_float32_ones(name, params):
    """Oracle: float32 parameters with the same gradients, which fall to a hundredth after ten updates.

    In bfloat16 the second moment stayed where it was, and updates were too small for ever after.
    """
    config = opt.OptimizerConfig(name, warmup_steps=0, clip_norm=0.0)
    optimizer = opt.make_optimizer(config, 100)
    update, found = jax.jit(optimizer.update), {}
    for dtype in (jnp.float32, jnp.bfloat16):
        narrow = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
        state = jax.jit(optimizer.init)(narrow)
        for number in range(100):
            size = 1.0 if number < 10 else 2.0**-7
            grads = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), narrow)
            updates, state = update(grads, state, narrow)
        found[dtype] = flat_leaves(updates)
    for path, leaf in found[jnp.float32].items():
        np.testing.assert_array_equal(found[jnp.bfloat16][path], leaf, err_msg=path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sgd"}, "name='sgd'"),
        ({"schedule": "step"}, "schedule='step'"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"b2": 1.0}, "b2 must lie"),
        # 1 in float32, whose bias correction is 0: the first step made everything NaN.
        ({"b2": 1 - 2.0**-25}, "b2 must lie"),
        # 0 in float32, and so is an entry's gradient that a batch does not look up: 0 / 0.
        ({"eps": 1e-46}, "eps must be 1.2e-38 or more, as in float32, not 1e-46"),
        ({"name": "adam", "weight_decay": 0.1}, "weight_decay=0.1"),
        ({"adam_learning_rate": 0.1}, "adam_learning_rate=0.1"),
        ({"momentum": 0.5}, "momentum=0.5 needs name='muon'; the momentum of 'adamw' is b1"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"warmup_steps": 2.5}, "warmup_steps must be a whole number, not 2.5"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        opt.OptimizerConfig(**fields)


@pytest.mark.parametrize(
    ("num_steps", "schedule"),
    [(1, "constant"), (100, "constant"), (501, "constant"), (900, "cosine")],
)
def test_it_is_known_how_much_of_the_rate_a_training_reaches(num_steps, schedule):
    """Oracle: the greatest rate of all its updates."""
    config = opt.OptimizerConfig(schedule=schedule)
    rates = opt.learning_rate_schedule(config, num_steps)(np.arange(num_steps))
    share = opt.greatest_share(config, num_steps)
    assert share == pytest.approx(float(rates.max()) / config.learning_rate)


def test_a_warm_up_longer_than_the_decay_is_refused():
    config = opt.OptimizerConfig(schedule="cosine", warmup_steps=100)
    with pytest.raises(ConfigError, match="warmup_steps=100"):
        opt.make_optimizer(config, 100)
