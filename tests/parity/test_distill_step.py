"""Distillation losses, gradients and six AdamW steps against the reference's.

Oracle: `distill_step.npz`, `grads_kl-bwd.safetensors`, `trajectory_*_step6.safetensors` of a
`reference_*` folder (golden/README.md), all on the batch and targets of `targets_k2_ancestral`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from sdtt_jax.distillation.loss import divergence_terms
from sdtt_jax.distillation.targets import stitch
from sdtt_jax.interchange.renaming import find_prefix, write_params
from sdtt_jax.interchange.tables.reference import ANCHOR, PREFIXES, denoiser_table
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import replicated
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import Loss, make_train_step
from tests.parity.reference import arrays, network

# The reference's name -> ours (its "tvd" compares log-probabilities).
DIVERGENCES = {"kl-bwd": "kl-bwd", "kl-fwd": "kl-fwd", "mse": "mse", "tvd": "log-l1"}
CONSTANTS = ("rotary_emb.inv_freq",)
B1, CLIP_NORM = 0.9, 1.0


@pytest.fixture(scope="module")
def batch(reference_golden):
    """The stored batch and its targets as hidden states: `(x_t, targets)`."""
    stored = arrays(reference_golden, "targets_k2_ancestral")
    denoiser, params = network(reference_golden, "teacher_hub")

    @jax.jit
    def target_of(params, x, target):
        return stitch(target, denoiser.hidden(params, x), x, denoiser.mask_id)

    target = np.zeros((*stored["xt"].shape, denoiser.config.embed_dim), np.float32)
    for x in stored["trajectory"][:-1]:
        target = target_of(params, x, target)
    return jax.device_put(stored["xt"]), target[None]


@pytest.fixture(scope="module")
def networks(reference_golden):
    return network(reference_golden, "teacher_hub"), network(reference_golden, "student_hub")


def _loss(diffusion, params, teacher_params, x_t, targets, divergence):
    sigma = jnp.zeros(x_t.shape[:1])
    return divergence_terms(diffusion, params, teacher_params, x_t, sigma, targets, divergence)


def _compare_tensors(close, quantity, config, tree, expected, tolerance, relative=False):
    prefix = find_prefix(expected, ANCHOR, PREFIXES, quantity)
    ours = write_params(denoiser_table(config), jax.tree.map(np.asarray, tree), prefix)
    names = {name for name in expected if not name.endswith(CONSTANTS)}
    assert names == {name for name in ours if not name.endswith(CONSTANTS)}
    for name in sorted(names):
        scale = max(np.abs(expected[name]).max(), 1e-3) if relative else 1.0
        close(quantity, ours[name], expected[name], tolerance, scale=scale)


@pytest.fixture(scope="module")
def losses(networks, batch):
    """All four, compiled together."""
    teacher, student = networks

    @jax.jit
    def each(*arguments):
        return {
            name: _loss(teacher.diffusion, *arguments, ours) for name, ours in DIVERGENCES.items()
        }

    return each(student.params, teacher.params, *batch)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_losses(reference_golden, losses, close, name):
    total, count = losses[name]
    expected = arrays(reference_golden, "distill_step")[f"loss_{name}"]
    close(f"distillation loss {name}", total / count, expected)


class Trained(NamedTuple):
    """Six steps of the library's own training step: warm-up, clipping, AdamW, EMA."""

    metrics: list[dict[str, jax.Array]]
    moment: Any  # Adam's first moment after the first step
    state: TrainState


@pytest.fixture(scope="module")
def trained(reference_golden, networks, batch):
    stored = arrays(reference_golden, "distill_step")
    teacher, student = networks
    x_t, targets = batch
    config = TrainConfig(
        num_steps=len(stored["traj_loss"]),
        batch_size=x_t.shape[0],
        ema_decay=0.9999,
        optimizer=OptimizerConfig(
            "adamw", learning_rate=1e-2, warmup_steps=3, b1=B1, clip_norm=CLIP_NORM
        ),
    )

    def loss_fn(params, context, tokens, key):
        del key
        teacher_params, targets = context["teacher_params"], context["targets"]
        total, count = _loss(teacher.diffusion, params, teacher_params, tokens, targets, "kl-bwd")
        return Loss(total, count, {})

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    context = {"teacher_params": teacher.params, "targets": targets}
    placed = jax.device_put(student.params, replicated(mesh))
    state = StateSpec(config, mesh).from_params(placed, context)
    step, moments, seen = make_train_step(loss_fn, config), [], []
    for _ in range(config.num_steps):
        state, metrics = step(state, x_t, jax.random.key(0))
        moments.append(jax.device_get(optax.tree.get(state.opt_state, "mu")))
        seen.append(metrics)
    return Trained(seen, moments[0], state)


def test_gradients(reference_golden, networks, trained, close):
    """Those of the first training step, by Adam's first moment, which is then (1 - b1) times as large.

    They were clipped to the global norm 1.
    """
    norm = float(trained.metrics[0]["grad_norm"])
    factor = (1 - B1) * min(1.0, CLIP_NORM / norm)
    gradients = jax.tree.map(lambda x: np.float64(x) / factor, trained.moment)
    # Relative to each tensor's largest entry.
    expected = load_file(reference_golden / "grads_kl-bwd.safetensors")
    config = networks[0].denoiser.config
    _compare_tensors(close, "gradients kl-bwd", config, gradients, expected, 1e-5, relative=True)


def test_six_adamw_steps(reference_golden, networks, trained, close):
    stored = arrays(reference_golden, "distill_step")
    for index, metrics in enumerate(trained.metrics):
        # Before the first update with a positive rate everything is exact; later steps see AdamW's
        # amplified rounding in the weights (README: 2e-4).
        tolerance = 1e-5 if index < 2 else 2e-4
        close("training: loss", metrics["loss"], stored["traj_loss"][index], tolerance)
        close("training: grad_norm", metrics["grad_norm"], stored["traj_grad_norm"][index], 2e-4)
        close("training: lr", metrics["lr"], stored["traj_lr"][index], 1e-7)
    state, config = trained.state, networks[0].denoiser.config
    for quantity, params in (("student", state.params), ("ema", state.ema_params)):
        expected = load_file(reference_golden / f"trajectory_{quantity}_step6.safetensors")
        _compare_tensors(close, f"training: {quantity} after 6", config, params, expected, 2e-4)
