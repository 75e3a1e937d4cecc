"""Trained exits. Oracles: sums written out over all positions and layers, networks whose layers add nothing,
and the network itself, which must stay what it is."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import NelboConfig, masked_batch
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.exit_training import train_exits, with_exits
from sdtt_jax.evaluation.exits import calibrate
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Sampling, Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import SUITES
from sdtt_jax.evaluation.variants import variant
from sdtt_jax.networks import Denoiser
from sdtt_jax.networks.exiting import EXITS, Exiting, layer_by_layer, untrained_exits
from sdtt_jax.objectives import BASE, exits_loss
from sdtt_jax.parallel.placement import unbox
from tests.evaluation.test_variants import folder, model, text  # noqa: F401 (fixtures)
from tests.networks.test_exiting import LAYERS, LENGTH, NETWORK, PARAMS, VOCAB
from tests.worlds import as_model

DIFFUSION = MaskedDiffusion(NETWORK, make_schedule())
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (64, LENGTH)).astype(np.int32)
KEY = jax.random.key(0)


def some_exits(scale=0.1):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32),
        untrained_exits(NETWORK.config),
    )


@jax.jit
def loss_and_gradient(exits, params):
    def mean(exits):
        loss = exits_loss(DIFFUSION)(exits, {BASE: params}, jnp.asarray(TOKENS), KEY)
        return loss.total / loss.weight, loss

    return jax.value_and_grad(mean, has_aux=True)(exits)


def test_the_loss_is_the_mean_divergence_of_exits_from_the_last_layer():
    """Position by position and layer by layer, in float64; MASK has no probability."""
    exits = some_exits()
    t, _, x_t = masked_batch(DIFFUSION, TOKENS, KEY, NelboConfig(weighting="even"))
    sigma = DIFFUSION.schedule.sigma(t)
    read = jax.jit(lambda p: layer_by_layer(NETWORK, p, x_t, sigma)[0])
    logits = np.float64(NETWORK.logits(PARAMS, read(PARAMS | {EXITS: exits})))[..., :VOCAB]
    logs = special.log_softmax(logits, axis=-1)
    masked = np.argwhere(np.asarray(x_t) == VOCAB)
    each = [
        (np.exp(logs[-1][b, i]) * (logs[-1][b, i] - logs[layer][b, i])).sum()
        for b, i in masked
        for layer in range(LAYERS - 1)
    ]
    (value, loss), gradient = loss_and_gradient(exits, PARAMS)
    assert value == pytest.approx(np.mean(each), rel=1e-4)
    assert loss.weight == len(each)
    assert (
        gradient["kernel"][-1] == 0
    ).all()  # the whole network is the measure, and does not move
    assert (gradient["bias"][-1] == 0).all()
    assert all((np.abs(gradient["kernel"][i]) > 0).any() for i in range(LAYERS - 1))


def test_where_the_layers_add_nothing_there_is_nothing_to_learn():
    """A new network's gates are shut: every layer's states are the last one's."""
    params = unbox(jax.jit(NETWORK.init)(jax.random.key(3)))
    (value, _), gradient = loss_and_gradient(untrained_exits(NETWORK.config), params)
    assert abs(value) < 1e-6
    assert all(np.abs(leaf).max() < 1e-6 for leaf in jax.tree.leaves(gradient))


def test_an_exit_is_a_map_of_its_layers_states_before_the_norm():
    """Of a layer whose states are x, the head reads norm(x + x A + b): here A takes x to zero."""
    exits = untrained_exits(NETWORK.config)
    exits["kernel"] = exits["kernel"].at[1].set(-jnp.eye(NETWORK.config.embed_dim))
    exits["bias"] = exits["bias"].at[1].set(jnp.arange(NETWORK.config.embed_dim))
    plain, mapped = (
        jax.jit(lambda p: layer_by_layer(NETWORK, p, TOKENS)[0])(PARAMS | more)
        for more in ({}, {EXITS: exits})
    )
    others = [0, 2, 3, 4]
    np.testing.assert_array_equal(mapped[jnp.array(others)], plain[jnp.array(others)])
    np.testing.assert_allclose(mapped[1], jnp.broadcast_to(mapped[1][:1, :1], mapped[1].shape))


@pytest.fixture(scope="module")
def trained():
    return train_exits(as_model(NETWORK, PARAMS), TOKENS, 0, num_steps=200, batch_size=32)


def test_training_brings_the_exits_to_the_last_layer_and_leaves_the_network_alone(trained):
    whole = as_model(NETWORK, PARAMS)
    tuned = with_exits(whole, trained)
    before = loss_and_gradient(untrained_exits(NETWORK.config), PARAMS)[0][0]
    after = loss_and_gradient(jax.tree.map(jnp.asarray, trained), PARAMS)[0][0]
    assert after < 0.5 * before
    for name in trained:
        assert not trained[name][-1].any()
    np.testing.assert_array_equal(tuned.logits(TOKENS[:2]), whole.logits(TOKENS[:2]))
    assert tuned.params_digest == whole.params_digest
    hidden, layers = jax.jit(Exiting(NETWORK, 1.01).leave)(tuned.params, TOKENS)
    np.testing.assert_allclose(hidden, NETWORK.hidden(PARAMS, TOKENS), atol=1e-5)
    assert (layers == LAYERS).all()


def test_the_same_promise_is_kept_with_fewer_layers(trained):
    """Random layers agree about nothing; the trained exits of 400 texts do, within the bound."""
    tokens = np.random.default_rng(2).integers(0, VOCAB, (400, LENGTH)).astype(np.int32)
    whole = as_model(NETWORK, PARAMS)
    plain, tuned = (
        calibrate(m, tokens, KEY, bound=0.3, least=1, batch_size=400)
        for m in (whole, with_exits(whole, trained))
    )
    assert tuned.layers < plain.layers - 0.25
    assert tuned.disagreement < 0.3


def test_they_are_trained_by_the_suite_stored_and_used(model, text, folder):  # noqa: F811
    asked = {"exit_bound": 0.99, "batch_size": 400, "held_out": text, "exit_training_text": text}

    def run(**more):
        record = Record(folder / "trained.out", model.identity)
        SUITES["exits"].run(Subject(model, Settings(**asked | more)), record)
        return record.items

    items = run(exit_training_steps=2)
    found = items["exits/trained_bound_0.99"]
    assert found["exits"] == "trained, 2 steps"
    early = variant(model, Sampling(early_exit=0.99), None)
    assert set(early.params[EXITS]) == {"kernel", "bias"}
    assert np.abs(early.params[EXITS]["kernel"]).max() > 0
    assert early.facts["variant"]["early_exit"]["threshold"] == found["threshold"]
    assert early.sample(jax.random.key(0), 2, 2).shape == (2, LENGTH)
    stored = json.loads((folder / "exits.json").read_text())

    # Exits of another training are others, and calibrated anew.
    run(exit_training_steps=3, exit_bound=0.9)
    with pytest.raises(ConfigError, match=r"with exits that are not, or not any more, in .*npz"):
        variant(model, Sampling(early_exit=0.99), None)
    assert variant(model, Sampling(early_exit=0.9), None)
    assert run(exit_training_steps=2) == run(exit_training_steps=2)
    assert variant(model, Sampling(early_exit=0.99), None)
    assert json.loads((folder / "exits.json").read_text())["0.99"] == stored["0.99"]

    (folder / "exits.npz").write_bytes(b"half a file")
    with pytest.raises(
        ConfigError, match=r"--exit_bound=0.99, with the same --exit_training_steps"
    ):
        variant(model, Sampling(early_exit=0.99), None)
    run()  # untrained exits need no file
    early = variant(model, Sampling(early_exit=0.99), None)
    assert EXITS not in early.params
    assert early.denoiser == Exiting(NETWORK, early.denoiser.threshold)
    assert isinstance(dataclasses.replace(early).denoiser.network, Denoiser)


def test_exits_need_text_of_their_own(model, text):  # noqa: F811
    settings = Settings(held_out=text, exit_training_steps=1)
    with pytest.raises(ConfigError, match="--exit_training_text=own is for a checkpoint in a run"):
        SUITES["exits"].run(Subject(model, settings), None)
