"""Trained exits. Oracles: sums written out over all positions and layers, networks whose layers add nothing,
and the network itself, which must stay what it is."""

import dataclasses
import functools
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
from sdtt_jax.evaluation import exits as exits_module
from sdtt_jax.evaluation.exits import calibrate, train_exits, with_exits
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Sampling, Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import SUITES
from sdtt_jax.evaluation.variants import variant
from sdtt_jax.networks import Denoiser
from sdtt_jax.networks.exiting import EXIT_PARAMS, Exiting, layer_by_layer, untrained_exits
from sdtt_jax.objectives import BASE, exits_loss
from sdtt_jax.ops.sequences import Sequences, arrange
from sdtt_jax.parallel import mesh
from sdtt_jax.parallel.placement import unbox
from tests.evaluation.test_variants import model, text  # noqa: F401 (fixtures)
from tests.networks.test_exiting import LAYERS, LENGTH, NETWORK, PARAMS, VOCAB, some_exits
from tests.worlds import as_model

DIFFUSION = MaskedDiffusion(NETWORK, make_schedule())
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (64, LENGTH)).astype(np.int32)
KEY = jax.random.key(0)


def loss_and_gradient(exits, params, sequences=None):
    return jax.device_get(_loss_and_gradient(exits, params, sequences))


@functools.partial(jax.jit, static_argnums=2)
def _loss_and_gradient(exits, params, sequences):
    def mean(exits):
        loss = exits_loss(DIFFUSION, sequences)(exits, {BASE: params}, jnp.asarray(TOKENS), KEY)
        return loss.total / loss.weight, loss

    return jax.value_and_grad(mean, has_aux=True)(exits)


@pytest.mark.parametrize("sequences", [None, Sequences("padded", 0, 1)], ids=["packed", "padded"])
def test_the_loss_is_the_mean_divergence_of_exits_from_the_last_layer(sequences):
    """Position by position and layer by layer, in float64; MASK has no probability. The cross-entropy of
    the exits' estimate of exp(-KL) is added. Padding is neither masked nor seen."""
    exits, arrangement = some_exits(), arrange(TOKENS, sequences)
    segments = None if arrangement is None else arrangement.segments

    @jax.jit
    def masked_and_states(params):
        within, config = DIFFUSION.within(arrangement), NelboConfig(weighting="even")
        t, _, x_t = masked_batch(within, TOKENS, KEY, config)
        sigma = DIFFUSION.schedule.sigma(t)
        return x_t, layer_by_layer(NETWORK, params, x_t, sigma, segments)[0]

    x_t, states = masked_and_states(PARAMS() | {EXIT_PARAMS: exits})
    logits = np.float64(jax.jit(NETWORK.logits)(PARAMS(), states))[..., :VOCAB]
    states, agreement, offset = (
        np.asarray(x) for x in (states, exits["agreement"], exits["offset"])
    )
    logs = special.log_softmax(logits, axis=-1)
    kl, said = [], []
    for layer in range(LAYERS - 1):
        for b, i in np.argwhere(np.asarray(x_t) == VOCAB):
            last, early = logs[-1][b, i], logs[layer][b, i]
            kl.append((np.exp(last) * (last - early)).sum())
            logit = states[layer][b, i] @ agreement[layer] + offset[layer]
            # The cross-entropy between exp(-KL) and the logistic function of the logit.
            said.append(np.logaddexp(0, logit) - np.exp(-kl[-1]) * logit)
    (value, loss), gradient = loss_and_gradient(exits, PARAMS(), sequences)
    assert loss.weight == len(kl)
    assert loss.metrics["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert value == pytest.approx(np.mean(kl) + np.mean(said), rel=1e-4)
    # The last layer is the measure and is not trained.
    for leaf in gradient.values():
        assert (leaf[-1] == 0).all()
        assert all((np.abs(leaf[layer]) > 0).any() for layer in range(LAYERS - 1))


def test_where_the_layers_add_nothing_there_is_nothing_to_learn():
    """A new network's gates are shut: all layers have the last one's states, so maps get no gradient."""
    params = unbox(jax.jit(NETWORK.init)(jax.random.key(3)))
    fresh = untrained_exits(NETWORK.config)
    (_, loss), gradient = loss_and_gradient(fresh, params)
    assert abs(loss.metrics["kl"]) < 1e-6
    assert all(np.abs(gradient[name]).max() < 1e-6 for name in ("kernel", "bias"))
    assert (gradient["offset"][:-1] < -0.1).all()  # towards saying that they agree


@pytest.fixture(scope="module")
def trained():
    return train_exits(as_model(NETWORK, PARAMS()), TOKENS, 0, num_steps=100, batch_size=32)


def test_devices_that_do_not_divide_a_batch_train_no_other_exits(monkeypatch):
    """A larger batch would be trained with, and kept as that of the size that was asked for."""
    monkeypatch.setattr(mesh, "batch_pieces", lambda _mesh: 4)
    monkeypatch.setattr(exits_module, "train", lambda *_given, **_fields: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=r"batch_size=6 cannot be split .* nearest that can is 8"):
        train_exits(as_model(NETWORK, PARAMS()), TOKENS, 0, num_steps=2, batch_size=6)


def test_training_brings_the_exits_to_the_last_layer_and_leaves_the_network_alone(trained):
    whole = as_model(NETWORK, PARAMS())
    tuned = with_exits(whole, trained)
    before = loss_and_gradient(untrained_exits(NETWORK.config), PARAMS())[0][1].metrics["kl"]
    after = loss_and_gradient(trained, PARAMS())[0][1].metrics["kl"]
    assert after < 0.5 * before
    for name in trained:
        assert not trained[name][-1].any()
    np.testing.assert_array_equal(tuned.logits(TOKENS[:2]), whole.logits(TOKENS[:2]))
    assert tuned.params_digest == whole.params_digest
    hidden, layers = jax.jit(Exiting(NETWORK, 1.01).leave)(tuned.params, TOKENS)
    np.testing.assert_allclose(hidden, jax.jit(NETWORK.hidden)(PARAMS(), TOKENS), atol=1e-5)
    assert (layers == LAYERS).all()


def test_the_same_promise_is_kept_with_fewer_layers(trained):
    """Random layers do not agree; trained exits do, within the bound, on 400 texts."""
    tokens = np.random.default_rng(2).integers(0, VOCAB, (400, LENGTH)).astype(np.int32)
    whole = as_model(NETWORK, PARAMS())
    plain, tuned = (
        calibrate(m, tokens, KEY, bound=0.3, least=1, batch_size=400)
        for m in (whole, with_exits(whole, trained))
    )
    assert tuned.layers < plain.layers - 0.25
    assert tuned.disagreement < 0.3


def test_they_are_trained_by_the_suite_stored_and_used(model, text, tmp_path):  # noqa: F811
    other = tmp_path / "other.txt"
    other.write_text("b" * 400 * LENGTH)
    asked = {"exit_bound": 0.99, "batch_size": 400, "held_out": text, "exit_training_text": text}

    def run(**more):
        record = Record(tmp_path / "trained.out", model.identity)
        SUITES["exits"].run(Subject(model, Settings(**asked | more)), record)
        return record.items

    items = run(exit_training_steps=2)
    found = items["exits/trained_bound_0.99"]
    assert found["exits"] == "trained, 2 steps"
    early = variant(model, Sampling(early_exit=0.99), None)
    assert set(early.params[EXIT_PARAMS]) == set(untrained_exits(NETWORK.config))
    assert np.abs(early.params[EXIT_PARAMS]["kernel"]).max() > 0
    assert early.facts["variant"]["early_exit"]["threshold"] == found["threshold"]
    assert early.sample(jax.random.key(0), 2, 2).shape == (2, LENGTH)
    stored = json.loads((tmp_path / "exits.json").read_text())

    # Exits of another training are other exits, and are calibrated anew.
    run(exit_training_steps=2, exit_training_text=str(other), exit_bound=0.9)
    with pytest.raises(
        ConfigError, match=r"with exits that .*npz does not hold, or no longer holds"
    ):
        variant(model, Sampling(early_exit=0.99), None)
    assert variant(model, Sampling(early_exit=0.9), None)
    run(exit_training_steps=2)  # as stored
    assert variant(model, Sampling(early_exit=0.99), None)
    assert json.loads((tmp_path / "exits.json").read_text())["0.99"] == stored["0.99"]

    (tmp_path / "exits.npz").write_bytes(b"half a file")
    with pytest.raises(
        ConfigError, match=r"--exit_bound=0.99, with the same --exit_training_steps"
    ):
        variant(model, Sampling(early_exit=0.99), None)
    run()  # untrained exits need no file
    early = variant(model, Sampling(early_exit=0.99), None)
    assert EXIT_PARAMS not in early.params
    assert early.denoiser == Exiting(NETWORK, early.denoiser.threshold)
    assert isinstance(dataclasses.replace(early).denoiser.network, Denoiser)


def test_exits_need_text_of_their_own(model, text):  # noqa: F811
    settings = Settings(held_out=text, exit_training_steps=1)
    with pytest.raises(ConfigError, match="--exit_training_text=own is for a checkpoint in a run"):
        SUITES["exits"].check(Subject(model, settings))


def test_a_batch_that_the_devices_do_not_divide_is_refused_first(model, text, monkeypatch):  # noqa: F811
    """It was refused when the suites before had run. Oracle: 4 texts on 3 devices."""
    settings = Settings(held_out=text, exit_training_steps=1, exit_training_text=text, batch_size=4)
    SUITES["exits"].check(Subject(model, settings))
    monkeypatch.setattr(type(model), "mesh", mesh.abstract_mesh(mesh.MeshConfig(), 3))
    with pytest.raises(ConfigError, match=r"batch_size=4 cannot be split .* nearest that can is 3"):
        SUITES["exits"].check(Subject(model, settings))


def test_a_threshold_for_other_lengths_is_measured_but_not_stored(model, text, tmp_path):  # noqa: F811
    """Texts are written at the model's own length, for which the promise would not be kept."""
    said = []
    settings = Settings(exit_bound=0.97, batch_size=400, held_out=text, length=LENGTH - 1)
    record = Record(tmp_path / "short.out", model.identity, said.append)
    SUITES["exits"].run(Subject(model, settings), record)
    assert "exits/bound_0.97" in record.items
    assert (
        f"not stored for --early_exit: the promise is for texts of {LENGTH - 1} tokens" in said[-1]
    )
    path = tmp_path / "exits.json"
    assert not path.exists() or "0.97" not in json.loads(path.read_text())
