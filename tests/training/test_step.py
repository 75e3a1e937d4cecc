"""The step: what it minimises, its keys, its average and its guard against values that are not finite."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.placement import place_batch
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig, make_optimizer
from sdtt_jax.training.state import StateSpec, ema_decay_at
from sdtt_jax.training.step import SPIKE_WARMUP, Loss, make_train_step
from tests.training import toy

KEY = jax.random.key(5)


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


def test_a_step_is_the_optimizer_on_the_gradient_of_the_weighted_mean():
    """Oracle: the same in a few lines of jax.grad and optax, without mesh or microbatches."""
    config = toy.configured(num_steps=3)
    state, step, _ = toy.setup(config)
    params = jax.tree.map(np.asarray, state.params)
    optimizer = make_optimizer(config.optimizer, 3)
    opt_state = jax.jit(optimizer.init)(params)

    @jax.jit
    def plain_step(params, opt_state, batch, key):
        def mean(params):
            loss = toy.loss_fn(params, {}, batch, key)
            return loss.total / loss.weight

        value, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, value, optax.tree.norm(grads), optax.tree.norm(params)

    for i in range(3):
        key = jax.random.fold_in(jax.random.fold_in(KEY, i), 0)
        params, opt_state, *figures = plain_step(params, opt_state, toy.batch_at(i), key)
        state, metrics = step(state, toy.batch_at(i), KEY)
        tolerances = {"loss": 1e-5, "grad_norm": 1e-4, "param_norm": 1e-5}
        for (name, rtol), figure in zip(tolerances.items(), figures, strict=True):
            np.testing.assert_allclose(metrics[name], figure, rtol=rtol, err_msg=name)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_microbatches_give_the_whole_batch_s_loss_and_gradient():
    """Their weights differ, so a mean of means would not: the loss function counts even tokens."""
    whole = run(toy.setup(toy.configured(), loss=toy.plain_loss_fn), 2)
    split = run(toy.setup(toy.configured(microbatches=4), loss=toy.plain_loss_fn), 2)
    for a, b in zip(whole[1], split[1], strict=True):
        for name in ("loss", "grad_norm", "accuracy"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)


def test_a_batch_that_microbatches_do_not_divide_is_refused():
    state, step, _ = toy.setup(toy.configured(microbatches=4))
    batch = jax.tree.map(lambda x: x[:-1], toy.batch_at(0))
    with pytest.raises(ConfigError, match="microbatches=4 does not divide a batch of"):
        step(state, batch, KEY)


def test_each_microbatch_has_its_own_key():
    """A loss that is its key's uniform draw: the mean over four differs from any single one."""

    def draw(params, context, batch, key):
        del context
        value = jax.random.uniform(key) + 0.0 * params["embed"]["embedding"].sum()
        return Loss(value * batch.shape[0], jnp.float32(batch.shape[0]), {})

    state, step, _ = toy.setup(toy.configured(microbatches=4), loss=draw)
    _, metrics = step(state, toy.batch_at(0), KEY)
    step_key = jax.random.fold_in(KEY, 0)
    draws = [jax.random.uniform(jax.random.fold_in(step_key, i)) for i in range(4)]
    np.testing.assert_allclose(metrics["loss"], np.mean(draws), rtol=1e-6)


def test_the_learning_rate_is_reported_by_update():
    _, seen, _ = run(toy.setup(toy.configured()), 3)
    np.testing.assert_allclose([m["lr"] for m in seen], [0.0, 0.005, 0.01], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "muon"])
def test_the_learning_rate_is_that_of_an_optimizer_that_goes_on(name):
    """A round that keeps the last round's optimizer has no warm-up. Oracle: how far parameters move."""
    config = toy.configured(name)
    state, seen, _ = run(toy.setup(config), 3)
    assert [m["lr"] > 0 for m in seen] == [False, True, True]
    spec = StateSpec(config, state.step.sharding.mesh)
    grown = spec.from_params(state.params, opt_state=state.opt_state)
    before = toy.host(grown)["params/head/linear/kernel"]
    _, [metrics], [after] = run((grown, make_train_step(toy.loss_fn, config), None), 1)
    np.testing.assert_allclose(metrics["lr"], 0.01 * (1 + np.cos(np.pi / 10)) / 2, rtol=1e-6)
    assert np.abs(after["params/head/linear/kernel"] - before).max() > 1e-3


def test_the_average_follows_the_ramp():
    """Oracle: the recursion in numpy with decay min(0.99, (1 + n) / (10 + n)), n = 1, 2, …"""
    setup = toy.setup(toy.configured())
    path = "head/linear/kernel"
    average = toy.host(setup[0])[f"params/{path}"].astype(np.float64)
    _, _, states = run(setup, 4)
    for n, state in enumerate(states, start=1):
        decay = min(0.99, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * state[f"params/{path}"]
        np.testing.assert_allclose(state[f"ema_params/{path}"], average, rtol=1e-5, atol=1e-7)
        assert state["ema_count"] == n


def test_the_ramp_ends_at_the_decay():
    np.testing.assert_allclose(ema_decay_at(1, 0.9999), 2 / 11)
    np.testing.assert_allclose(ema_decay_at(10**6, 0.9999), 0.9999)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(kind):
    def poisoned(params, context, batch, key):
        loss = toy.loss_fn(params, context, batch, key)
        bad = batch[0, 0] < 0
        if kind == "loss":
            return loss._replace(total=jnp.where(bad, jnp.inf, loss.total))
        # sqrt(0) has value 0 and an infinite slope: a gradient that is NaN under a finite loss. The
        # inner `where` keeps good batches clear of it, for 0 * inf would be NaN there too.
        x = params["embed"]["embedding"][0, 0]
        return loss._replace(total=loss.total + jnp.sqrt(jnp.where(bad, x - x, 1.0)) - 1.0)

    def batches(i):
        batch = toy.batch_at(i)
        return np.where(
            (i in (1, 2)) & (np.arange(batch.size).reshape(batch.shape) == 0), -1, batch
        )

    _, seen, states = run(toy.setup(toy.configured(), loss=poisoned), 4, batches)
    assert [m["rejected"] for m in seen] == [0, 1, 1, 0]
    assert [bool(np.isfinite(m["loss"])) for m in seen[1:3]] == [kind == "gradient"] * 2
    assert [m["rejected_in_a_row"] for m in seen] == [0, 1, 2, 0]
    assert [int(s["rejected"]) for s in states] == [0, 1, 2, 2]
    assert [int(s["step"]) for s in states] == [1, 2, 3, 4]
    for path in states[0]:
        if path.startswith(("params", "opt_state", "ema")):
            np.testing.assert_array_equal(states[2][path], states[0][path], err_msg=path)
    moved = "params/head/linear/kernel"
    assert not np.array_equal(states[3][moved], states[2][moved])
    # The schedule counts updates, not steps: the one after the rejections is number 1.
    np.testing.assert_allclose(seen[3]["lr"], 0.005, rtol=1e-6)


@pytest.mark.parametrize(
    ("usual", "then", "rejected"),
    [(-1.0, -1.0, 0), (0.0, 0.5, 0), (-1.0, 50.0, 0), (1.0, 2.9, 0), (1.0, 3.1, 1)],
)
def test_a_spike_is_above_a_mean_that_is_positive(usual, then, rejected):
    """If losses are about 0 or below, no multiple is a limit: -1 > 3 * -1 rejected every update."""

    def given(params, context, batch, key):
        del context, key
        value = jnp.where(batch[0, 0] < 0, then, usual) + 0.0 * params["embed"]["embedding"].sum()
        return Loss(value, jnp.float32(1), {})

    def batches(step):
        return np.full((16, toy.LENGTH), -1 if step == SPIKE_WARMUP + 2 else 1, np.int32)

    setup = toy.setup(toy.configured(num_steps=64, spike_factor=3.0), loss=given)
    state, seen, _ = run(setup, SPIKE_WARMUP + 4, batches)
    assert [m["rejected"] for m in seen][SPIKE_WARMUP + 2] == rejected
    assert int(state.rejected) == rejected


def test_a_batch_in_which_nothing_counts_is_harmless():
    def nothing(params, context, batch, key):
        return toy.loss_fn(params, context, batch, key)._replace(
            total=0.0 * params["embed"]["embedding"].sum(), weight=jnp.float32(0)
        )

    _, [metrics], _ = run(toy.setup(toy.configured(), loss=nothing), 1)
    assert metrics["loss"] == 0
    assert metrics["grad_norm"] == 0
    assert metrics["rejected"] == 0


def test_the_whole_state_is_donated_and_its_context_stays_where_it_is():
    """A teacher is as large as a student: it must neither be copied nor be held twice."""
    context = {"scale": jnp.float32(2.0), "table": jnp.ones((64, 64))}
    state, step, _ = toy.setup(toy.configured(), context=context)
    batch = place_batch(toy.batch_at(0), state.step.sharding.mesh)
    before = state.context["table"].unsafe_buffer_pointer()
    new, _ = step(state, batch, KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert new.context["table"].unsafe_buffer_pointer() == before
    assert not context["scale"].is_deleted()
    memory = step.lower(new, batch, KEY).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(new))


def test_the_context_reaches_the_loss():
    plain = run(toy.setup(toy.configured(), loss=toy.plain_loss_fn), 1)[1][0]
    context = {"scale": jnp.float32(2.0)}
    double = run(toy.setup(toy.configured(), loss=toy.plain_loss_fn, context=context), 1)[1][0]
    np.testing.assert_allclose(double["loss"], 2 * plain["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2**31}, r"num_steps=2147483648 must be below 2\*\*31"),
        ({"ema_decay": 1.0}, "ema_decay must lie in"),
        ({"microbatches": 3}, "microbatches=3"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**({"num_steps": 1, "batch_size": 8} | fields))


def test_the_loss_decreases():
    batches = functools.partial(lambda _: toy.batch_at(0))
    _, seen, _ = run(toy.setup(toy.configured("muon", num_steps=30)), 30, batches)
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
    state, step, _ = toy.setup(toy.configured())
    batch = place_batch(toy.batch_at(0), state.step.sharding.mesh)
    compiled, log = "Finished XLA compilation of jit(body)", logging.getLogger(__name__)
    monkeypatch.setattr("sdtt_jax.training.step.give_back_memory", lambda: log.warning("freed"))
    with jax.log_compiles():
        for _ in range(2):
            state, _ = step(state, batch, KEY)
    messages = [record.getMessage().split(" in ")[0] for record in caplog.records]
    assert [m for m in messages if m in (compiled, "freed")] == [compiled, "freed"]
