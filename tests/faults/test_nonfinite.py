"""Values that are not finite, and losses that spike. Oracle: the state before, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.errors import CheckpointError
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import place_whole
from sdtt_jax.training import loop
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.state import StateSpec
from sdtt_jax.training.step import SPIKE_WARMUP, Loss, make_train_step
from tests.checkpoints import stored
from tests.multidevice import programs
from tests.training import tiny, toy

TRAINED = ("params", "opt_state", "ema")


def poisoned(*steps):
    """Batches; those of the given steps (from 0) are all NaN."""

    def batch_at(step):
        batch = tiny.batch_at(step)
        return np.full_like(batch, np.nan) if step in steps else batch

    return batch_at


@pytest.mark.fault(
    row=19,
    fault="loss or gradient is not finite, step after step",
    promise="stops at max_rejected; every batch told; the last checkpoint is finite and from before",
)
@pytest.mark.parametrize(("log_every", "save_every"), [(1, 4), (4, 4), (4, 1)])
def test_row_19_persistent_nan_stops_the_run(tmp_path, log_every, save_every):
    told = []

    def run(num_steps=tiny.NUM_STEPS, **fields):
        return tiny.run(
            tmp_path,
            poisoned(*range(5, 99)),
            num_steps,
            save_every=save_every,
            log_every=log_every,
            on_rejected=lambda step, values: told.append((step, values["rejected_in_a_row"])),
            **fields,
        )

    with pytest.raises(loop.NonFiniteError, match=r"3 steps in a row, up to step 8.*--workdir"):
        run(max_rejected=3)
    assert told == [(6, 1), (7, 2), (8, 3)]
    with Checkpoints(tmp_path / "steps") as checkpoints:
        state, _ = checkpoints.restore(tiny.abstract())
    assert int(state.step) == (4 if save_every == 4 else 5)
    assert int(state.rejected) == 0
    assert all(np.isfinite(leaf).all() for leaf in toy.host(state).values())
    # Whoever knows better may allow more.
    assert int(run(9, max_rejected=5).rejected_in_a_row) == 4


@pytest.mark.fault(
    row=19,
    fault="stopped between two updates that are rejected, or a save falls there",
    promise="the save waits for a good update, a stop does not; resumed, bit for bit the unbroken run",
)
def test_row_19_stopped_among_rejected_updates(tmp_path):
    """Updates 4 to 7 are rejected, so that what was due at 4 is saved at 8."""
    batches = poisoned(3, 4, 5, 6)
    unbroken = tiny.run(tmp_path / "unbroken", batches, keep=9)
    assert (int(unbroken.rejected), int(unbroken.rejected_in_a_row)) == (4, 0)
    with Checkpoints(tmp_path / "unbroken" / "steps") as checkpoints:
        assert checkpoints.steps == [8, 12]
    for step in (4, 6):
        tiny.run(tmp_path / str(step), batches, num_steps=step)
        toy.assert_same(tiny.run(tmp_path / str(step), batches), unbroken)


@pytest.mark.fault(
    row=19,
    fault="more bad steps in a row than allowed, between two log points",
    promise="found at the next log point, though the loss is finite again by then",
)
def test_row_19_a_streak_between_log_points(tmp_path):
    with pytest.raises(loop.NonFiniteError, match="3 steps in a row, up to step 7"):
        tiny.run(tmp_path, poisoned(4, 5, 6), max_rejected=3, log_every=12)


@pytest.mark.fault(
    row=19,
    fault="a state that is not finite is to be saved",
    promise="refused, naming the leaf; the last checkpoint stays the latest",
)
def test_row_19_a_state_that_is_not_finite_is_never_saved(tmp_path):
    three = stored.save_three(tmp_path)
    state = stored.state_at(4)
    bad = state.params["blocks"]["kernel"].at[3, 3].set(jnp.nan)
    state = state.replace(params={"blocks": state.params["blocks"] | {"kernel": bad}})
    with (
        Checkpoints(three, keep=3) as checkpoints,
        pytest.raises(CheckpointError, match=r"params/blocks/kernel.*not finite"),
    ):
        checkpoints.save(state)
    toy.assert_same(stored.restore(three)[0], stored.state_at(3))


@pytest.mark.fault(
    row=20,
    fault="the teacher's outputs are not finite for a step",
    promise="the whole update is rejected: student, optimizer, average and teacher stay as they were",
)
def test_row_20_a_teacher_that_is_not_finite():
    """The real distillation loss: its targets are drawn from a teacher with a NaN in each bias."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    teacher, _ = programs.start("teacher", mesh)
    context = {"teacher_params": teacher.params, "dt": jnp.float32(0.2)}
    state, step = programs.start("distill", mesh, context)
    key = place_whole(jax.random.key(5), mesh)

    def poison(path, leaf):
        return leaf.at[..., 3].set(jnp.nan) if "bias" in str(path[-1]) else leaf

    before = toy.host(state)
    good = state.context["teacher_params"]
    bad = jax.tree_util.tree_map_with_path(poison, jax.tree.map(jnp.copy, good))
    state, metrics = step(
        state.replace(context=state.context | {"teacher_params": bad}),
        programs.batch_at(0, mesh),
        key,
    )
    assert metrics["rejected"] == 1
    state = state.replace(context=state.context | {"teacher_params": good})
    after = toy.host(state)
    for path in before:
        if path.startswith((*TRAINED, "context")):
            assert after[path].tobytes() == before[path].tobytes(), path
    state, metrics = step(state, programs.batch_at(1, mesh), key)
    assert metrics["rejected"] == 0
    assert np.isfinite(float(metrics["loss"]))


def spiky_step(factor):
    """A state, and a step whose loss is the first value of its batch and teaches nothing."""

    def loss_fn(params, context, batch, key):
        del context, key
        return Loss(batch[0, 0] + 0.0 * params["bias"].sum(), jnp.float32(1), {})

    config = TrainConfig(64, 8, spike_factor=factor)
    init = functools.partial(tiny.init, jax.random.key(0))
    state = StateSpec(config, make_mesh(MeshConfig())).init(init)
    return state, make_train_step(loss_fn, config)


def trained(state, step, batch_at, num_steps):
    return loop.train(state, step, batch_at, jax.random.key(0), TrainConfig(num_steps, 8))


def losses(first, at, value):
    """Batches filled with `first`, but with `value` at step `at` (from 0)."""
    return lambda step: np.full((8, 4), value if step == at else first, np.float32)


@pytest.mark.parametrize(
    ("factor", "value", "rejected"), [(3.0, 7.0, 1), (3.0, 5.0, 0), (0.0, 1e9, 0)]
)
def test_a_spike_is_rejected_where_that_is_asked_for(factor, value, rejected):
    """The running mean of a constant loss of 2 is 2, so the limit is factor · 2."""
    state, step = spiky_step(factor)
    state = trained(state, step, losses(2.0, SPIKE_WARMUP, value), SPIKE_WARMUP + 2)
    assert int(state.rejected) == rejected
    if factor:
        mean = float(state.loss_mean)
        assert mean == pytest.approx(2.0) if rejected else mean > 2.0


def test_no_spike_before_the_mean_has_seen_enough():
    state, step = spiky_step(3.0)
    state = trained(state, step, losses(2.0, SPIKE_WARMUP - 1, 99.0), SPIKE_WARMUP)
    assert int(state.rejected) == 0
