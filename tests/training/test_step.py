"""The step: what it minimises, its keys, its average and its guard against values that are not finite."""

import dataclasses
import functools
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import place_batch
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig, make_optimizer
from sdtt_jax.training.state import StateSpec, TrainState, ema_decay_at
from sdtt_jax.training.step import SPIKE_DECAY, SPIKE_WARMUP, Loss, Mean, TrainStep, make_train_step
from sdtt_jax.trees import nested
from tests.training import tiny, toy

KEY = jax.random.key(5)
CONFIG, MUON = (toy.configured(name, num_steps=32) for name in ("adamw", "muon"))


def run(setup, steps, batches=None, key=KEY):
    """Losses, grad norms … of each step and the states' host copies, from plain calls of the step."""
    state, step, _ = setup
    seen, states = [], []
    for i in range(steps):
        batch = (batches or toy.batch_at)(i)
        state, metrics = step(state, batch, key)
        seen.append(jax.device_get(metrics))
        states.append(toy.host(state))
    return state, seen, states


def tiny_setup(loss, context=None, **fields):
    """The same as `toy.setup` for the network of tests/training/tiny.py, whose step compiles faster."""
    config = dataclasses.replace(tiny.config(), **fields)
    spec = StateSpec(config, make_mesh(MeshConfig()))
    init = functools.partial(tiny.init, jax.random.key(0))
    return spec.init(init, context), make_train_step(loss, config), None


class Ran(NamedTuple):
    """Four steps from a fresh state: the host copy of that, the last state, and what `run` says of each."""

    config: TrainConfig
    step: TrainStep
    first: dict[str, np.ndarray]
    last: TrainState
    seen: list[dict[str, np.ndarray]]
    states: list[dict[str, np.ndarray]]


def ran(config):
    state, step, _ = toy.setup(config)
    first = toy.host(state)
    return Ran(config, step, first, *run((state, step, None), 4))


@pytest.fixture(scope="module")
def adamw():
    return ran(CONFIG)


@pytest.fixture(scope="module")
def muon():
    return ran(MUON)


@pytest.fixture(scope="module")
def plain():
    """`scale -> setup` of the loss without randomness, times a scale from the context; compiled once."""
    step = make_train_step(toy.plain_loss_fn, CONFIG)
    spec = StateSpec(CONFIG, make_mesh(MeshConfig()))
    params = spec.init(functools.partial(toy.init, jax.random.key(0))).params
    return lambda scale: (spec.from_params(params, {"scale": jnp.float32(scale)}), step, None)


def test_a_step_is_the_optimizer_on_the_gradient_of_the_weighted_mean(adamw):
    """Oracle: the same in a few lines of jax.grad and optax, without mesh or microbatches."""
    params = nested(adamw.first)["params"]
    optimizer = make_optimizer(CONFIG.optimizer, CONFIG.num_steps)
    opt_state = jax.jit(optimizer.init)(params)

    @jax.jit
    def plain_step(params, opt_state, batch, i):
        key = jax.random.fold_in(jax.random.fold_in(KEY, i), 0)

        def mean(params):
            loss = toy.loss_fn(params, {}, batch, key)
            return loss.total / loss.weight

        value, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, value, optax.tree.norm(grads), optax.tree.norm(params)

    for i, metrics in enumerate(adamw.seen):
        params, opt_state, *figures = plain_step(params, opt_state, toy.batch_at(i), i)
        tolerances = {"loss": 1e-5, "grad_norm": 1e-4, "param_norm": 1e-5}
        for (name, rtol), figure in zip(tolerances.items(), figures, strict=True):
            np.testing.assert_allclose(metrics[name], figure, rtol=rtol, err_msg=name)
    for a, b in zip(jax.tree.leaves(adamw.last.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_microbatches_give_the_whole_batch_s_loss_and_gradient(plain):
    """Their weights differ, so a mean of means would not: the loss function counts even tokens."""
    whole = run(plain(1.0), 2)
    step = make_train_step(toy.plain_loss_fn, dataclasses.replace(CONFIG, microbatches=4))
    split = run((plain(1.0)[0], step, None), 2)
    for a, b in zip(whole[1], split[1], strict=True):
        for name in ("loss", "grad_norm", "accuracy"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)


def test_metrics_are_means_over_what_counts_also_where_a_microbatch_has_nothing():
    """Oracle: NumPy's mean over the positive numbers of the batch; one of four microbatches has none."""

    def positive(params, context, batch, key):
        del context, key
        count, total = (batch > 0).sum(), jnp.where(batch > 0, batch, 0.0).sum()
        own = {"own": Mean(3 * total, 2 * count), "never": Mean(0 * total, 0 * count)}
        return Loss(total + 0.0 * params["kernel"].sum(), count, own | {"mean": total / count})

    batch = np.abs(tiny.batch_at(0))
    batch[2::4] = -1.0
    state, step, _ = tiny_setup(positive, microbatches=4)
    _, metrics = step(state, batch, KEY)
    np.testing.assert_allclose(metrics["mean"], batch[batch > 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], metrics["mean"], rtol=1e-6)
    np.testing.assert_allclose(metrics["own"], 1.5 * metrics["mean"], rtol=1e-6)
    assert metrics["never"] == 0


def test_many_microbatches_of_bfloat16_parameters_add_up():
    """Oracle: each of 1024 numbers has the gradient 1, and so has the mean; it was 0.25."""

    def total(params, context, batch, key):
        del context, key
        return Loss(params["w"].astype(jnp.float32) * batch.sum(), batch.sum(), {})

    config = dataclasses.replace(CONFIG, batch_size=1024, microbatches=1024, ema_decay=0.0)
    spec = StateSpec(config, make_mesh(MeshConfig()))
    state = spec.init(lambda: {"w": jnp.ones((), jnp.bfloat16)})
    _, metrics = make_train_step(total, config)(state, np.ones(1024, np.float32), KEY)
    assert float(metrics["grad_norm"]) == 1.0
    assert all(x.dtype == jnp.float32 for x in metrics.values())  # norms were bfloat16


def test_a_batch_that_microbatches_do_not_divide_is_refused():
    state, step, _ = tiny_setup(tiny.loss_fn, {"target": 0.5}, microbatches=4)
    with pytest.raises(ConfigError, match="microbatches=4 does not divide a batch of"):
        step(state, tiny.batch_at(0)[:-1], KEY)


def test_each_microbatch_has_its_own_key():
    """A loss that is its key's uniform draw: the mean over four differs from any single one."""

    def draw(params, context, batch, key):
        del context
        value = jax.random.uniform(key) + 0.0 * params["kernel"].sum()
        return Loss(value * batch.shape[0], jnp.float32(batch.shape[0]), {})

    state, step, _ = tiny_setup(draw, microbatches=4)
    _, metrics = step(state, tiny.batch_at(0), KEY)
    step_key = jax.random.fold_in(KEY, 0)
    draws = [jax.random.uniform(jax.random.fold_in(step_key, i)) for i in range(4)]
    np.testing.assert_allclose(metrics["loss"], np.mean(draws), rtol=1e-6)


def test_the_learning_rate_is_reported_by_update(adamw):
    rates = [metrics["lr"] for metrics in adamw.seen]
    last = 0.01 * (1 + np.cos(np.pi / 30)) / 2
    np.testing.assert_allclose(rates, [0.0, 0.005, 0.01, last], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_learning_rate_is_that_of_an_optimizer_that_goes_on(request, name):
    """A round that keeps the last round's optimizer has no warm-up. Oracle: how far parameters move."""
    config, step, _, state, seen, _ = request.getfixturevalue(name)
    assert [metrics["lr"] > 0 for metrics in seen] == [False, True, True, True]
    spec = StateSpec(config, state.step.sharding.mesh)
    grown = spec.from_params(state.params, opt_state=state.opt_state)
    before = toy.host(grown)["params/head/linear/kernel"]
    _, [metrics], [after] = run((grown, step, None), 1)
    np.testing.assert_allclose(metrics["lr"], 0.01 * (1 + np.cos(2 * np.pi / 30)) / 2, rtol=1e-6)
    assert np.abs(after["params/head/linear/kernel"] - before).max() > 1e-3


def test_the_average_follows_the_ramp(adamw):
    """Oracle: the recursion in numpy with decay min(0.99, (1 + n) / (10 + n)), n = 1, 2, …"""
    path = "head/linear/kernel"
    average = adamw.first[f"params/{path}"].astype(np.float64)
    for n, state in enumerate(adamw.states, start=1):
        decay = min(0.99, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * state[f"params/{path}"]
        np.testing.assert_allclose(state[f"ema_params/{path}"], average, rtol=1e-5, atol=1e-7)
        assert state["ema_count"] == n


def test_the_ramp_ends_at_the_decay():
    np.testing.assert_allclose(ema_decay_at(1, 0.9999), 2 / 11)
    np.testing.assert_allclose(ema_decay_at(10**6, 0.9999), 0.9999)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    """Step 1 has a loss that is infinite, step 2 a gradient that is NaN under a finite loss."""

    def poisoned(params, context, batch, key):
        del context
        kind, clean = batch[0, 0], batch.at[0, 0].set(0.0)
        loss = tiny.loss_fn(params, {"target": 0.5}, clean, key)
        total = jnp.where(kind == -100, jnp.inf, loss.total)
        # sqrt(0) has value 0 and an infinite slope. The inner `where` keeps good batches clear of it, for
        # 0 * inf would be NaN there too.
        x = params["kernel"][0, 0]
        return loss._replace(total=total + jnp.sqrt(jnp.where(kind == -200, x - x, 1.0)) - 1.0)

    def batches(step):
        batch = tiny.batch_at(step)
        batch[0, 0] = {1: -100, 2: -200}.get(step, 0)
        return batch

    _, seen, states = run(tiny_setup(poisoned), 4, batches)
    assert [m["rejected"] for m in seen] == [0, 1, 1, 0]
    assert [bool(np.isfinite(m["loss"])) for m in seen] == [True, False, True, True]
    assert [bool(np.isfinite(m["grad_norm"])) for m in seen[2:]] == [False, True]
    assert [m["rejected_in_a_row"] for m in seen] == [0, 1, 2, 0]
    assert [int(s["rejected"]) for s in states] == [0, 1, 2, 2]
    assert [int(s["step"]) for s in states] == [1, 2, 3, 4]
    for rejected in states[1:3]:
        for path in rejected:
            if path.startswith(("params", "opt_state", "ema")):
                np.testing.assert_array_equal(rejected[path], states[0][path], err_msg=path)
    assert not np.array_equal(states[3]["params/kernel"], states[2]["params/kernel"])
    # The schedule counts updates, not steps: the one after the rejections is number 1.
    np.testing.assert_allclose(seen[3]["lr"], 0.1 / 3, rtol=1e-6)


@pytest.fixture(scope="module")
def spiking():
    """`() -> setup` of a loss that is a batch's first number; compiled once."""

    def given(params, context, batch, key):
        del context, key
        return Loss(batch[0, 0] + 0.0 * params["kernel"].sum(), jnp.float32(1), {})

    state, step, _ = tiny_setup(given, num_steps=64, spike_factor=3.0)
    first, shardings = jax.device_get(state), jax.tree.map(lambda x: x.sharding, state)
    return lambda: (jax.device_put(first, shardings, may_alias=False), step, None)


@pytest.mark.parametrize(
    ("usual", "then", "rejected"),
    [(-1.0, -1.0, 0), (0.0, 0.5, 0), (-1.0, 50.0, 0), (1.0, 2.9, 0), (1.0, 3.1, 1)],
)
def test_a_spike_is_above_a_mean_that_is_positive(spiking, usual, then, rejected):
    """If losses are about 0 or below, no multiple is a limit: -1 > 3 * -1 rejected every update."""

    def batches(step):
        return np.full((8, 4), then if step == SPIKE_WARMUP + 2 else usual, np.float32)

    state, seen, _ = run(spiking(), SPIKE_WARMUP + 4, batches)
    assert [m["rejected"] for m in seen][SPIKE_WARMUP + 2] == rejected
    assert int(state.rejected) == rejected


def test_spikes_are_measured_once_enough_steps_were_accepted_against_the_mean_of_those(spiking):
    """Oracle: the ramp's recursion in NumPy over the accepted steps alone. Steps 0 and 2 are not finite."""
    losses = np.random.default_rng(0).uniform(1, 2, SPIKE_WARMUP + 3)
    losses[[0, 2, -2, -1]] = np.nan, np.nan, 9.0, 99.0  # after 19 and 20 accepted steps
    _, seen, states = run(spiking(), len(losses), lambda i: np.full((8, 4), losses[i], np.float32))
    assert [m["rejected"] for m in seen] == [*np.isnan(losses[:-1]), True]
    mean, count = 0.0, 0
    for loss, metrics, state in zip(losses, seen, states, strict=True):
        if not metrics["rejected"]:
            count += 1
            decay = min(SPIKE_DECAY, (1 + count) / (10 + count)) if count > 1 else 0.0
            mean = decay * mean + (1 - decay) * loss
        np.testing.assert_allclose(state["loss_mean"], mean, rtol=1e-5)


def test_a_batch_in_which_nothing_counts_is_harmless(plain):
    odd = np.ones((16, toy.LENGTH), np.int32)
    _, [metrics], _ = run(plain(1.0), 1, lambda _: odd)
    assert metrics["loss"] == 0
    assert metrics["grad_norm"] == 0
    assert metrics["rejected"] == 0


def test_the_whole_state_is_donated_and_its_context_stays_where_it_is():
    """A teacher is as large as a student: it must neither be copied nor be held twice."""
    context = {"target": jnp.float32(0.5), "table": jnp.ones((64, 64))}
    state, step, _ = tiny_setup(tiny.loss_fn, context)
    batch = place_batch(tiny.batch_at(0), state.step.sharding.mesh)
    before = state.context["table"].unsafe_buffer_pointer()
    new, _ = step(state, batch, KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert new.context["table"].unsafe_buffer_pointer() == before
    assert not context["target"].is_deleted()
    memory = step.lower(new, batch, KEY).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(new))


def test_the_context_reaches_the_loss(plain):
    [once], [twice] = (run(plain(scale), 1)[1] for scale in (1.0, 2.0))
    np.testing.assert_allclose(twice["loss"], 2 * once["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2**31}, r"num_steps=2147483648 must be below 2\*\*31"),
        ({"ema_decay": 1.0}, "ema_decay must lie in"),
        ({"microbatches": 3}, "microbatches=3"),
        ({"optimizer": "adam"}, "optimizer must be of type OptimizerConfig, not 'adam'; pass"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**({"num_steps": 1, "batch_size": 8} | fields))


@pytest.mark.parametrize(
    ("returned", "fields", "message"),
    [
        (lambda total: total, {}, r"must return Loss\(.*; it returned one value\."),
        (lambda total: (total, {}), {}, r"must return Loss\(.*; it returned a tuple of 2\."),
        (lambda total: Loss(total, 1, {"lr": 1.0}), {}, "metric 'lr' is one of the step's own"),
        (lambda total: Loss(total, jnp.ones(8), {}), {}, r"weight must be .* not of shape \[8\]"),
        (
            lambda total: Loss(total, 1, {}),
            {"ema_decay": 0.0},
            r"ema_decay=0\.0, and .* has one; giv",
        ),
        (
            lambda total: Loss(total, 1, {}),
            {"spike_factor": 3.0},
            r"spike_factor=3\.0, and .* has no",
        ),
    ],
)
def test_what_does_not_fit_a_step_is_named_when_it_is_traced(returned, fields, message):
    """They were errors of Python, or went without a word: an average that was the last parameters."""
    spec = StateSpec(tiny.config(), make_mesh(MeshConfig()))
    state = spec.abstract(functools.partial(tiny.init, KEY))
    config = dataclasses.replace(tiny.config(), **fields)
    step = make_train_step(lambda params, *_: returned(params["bias"].sum()), config)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(step.body, state, tiny.batch_at(0), KEY)


def test_a_loss_without_metrics_has_those_of_the_step():
    """None was an AttributeError. Oracle: the step of an empty dict."""
    spec = StateSpec(tiny.config(), make_mesh(MeshConfig()))
    state = spec.abstract(functools.partial(tiny.init, KEY))
    none, empty = (
        make_train_step(lambda p, *_, m=m: Loss(p["bias"].sum(), 1, m), tiny.config()).body
        for m in (None, {})
    )
    found = jax.eval_shape(none, state, tiny.batch_at(0), KEY)
    assert found == jax.eval_shape(empty, state, tiny.batch_at(0), KEY)


def test_the_loss_decreases(muon):
    state, _, _ = toy.setup(muon.config)
    _, seen, _ = run((state, muon.step, None), 30, lambda _: toy.batch_at(0))
    assert seen[-1]["loss"] < 0.9 * seen[0]["loss"]


def test_a_schedule_without_room_is_refused_before_anything_runs():
    """The error used to come when the stage began, hours into a run."""
    with pytest.raises(ConfigError, match="warmup_steps=10 leaves no steps of num_steps=10"):
        TrainConfig(
            num_steps=10,
            batch_size=8,
            optimizer=OptimizerConfig(schedule="linear", warmup_steps=10),
        )


def test_a_step_is_compiled_once_and_what_the_compiler_freed_is_given_back_before_it_runs(
    monkeypatch, caplog
):
    """At 12 x 768 the peak memory was 0.4 GB higher: the freed memory was held beside the step's own."""
    state, step, _ = tiny_setup(tiny.loss_fn, {"target": 0.5})
    batch = place_batch(tiny.batch_at(0), state.step.sharding.mesh)
    compiled, log = "Finished XLA compilation of jit(body)", logging.getLogger(__name__)
    monkeypatch.setattr("sdtt_jax.training.step.give_back_memory", lambda: log.warning("freed"))
    with jax.log_compiles():
        for _ in range(2):
            state, _ = step(state, batch, KEY)
    messages = [record.getMessage().split(" in ")[0] for record in caplog.records]
    assert [m for m in messages if m in (compiled, "freed")] == [compiled, "freed"]
