"""Distillation targets against the reference's, its stored trajectories replayed.

Oracle: `targets_k*_*.npz` of a `reference_*` folder (golden/README.md), float32, within 1e-5 relative.
The draws themselves are not reproducible across frameworks, so the states are the reference's and the
stitching is ours.
"""

import jax
import numpy as np

from sdtt_jax.diffusion.forward import masked_log_probs
from sdtt_jax.distillation.targets import step_times, stitch
from tests.parity.reference import SCHEDULE, arrays, network, target_files


def test_targets_of_replayed_trajectories(reference_golden, close):
    files = target_files(reference_golden)
    assert files
    denoiser, params = network(reference_golden, "teacher_hub")

    @jax.jit
    def target_of(params, x, target, t):
        hidden = denoiser.hidden(params, x, SCHEDULE.sigma(t))
        return stitch(target, hidden, x, denoiser.mask_id)

    @jax.jit
    def log_probs_of(params, target):
        return masked_log_probs(denoiser.logits(params, target), denoiser.mask_id)

    for name in files:
        stored = arrays(reference_golden, name)
        trajectory, masked = stored["trajectory"], stored["mask"]
        np.testing.assert_array_equal(trajectory[0], stored["xt"])
        np.testing.assert_array_equal(masked, stored["xt"] == denoiser.mask_id)
        k = len(trajectory) - 1
        target = np.zeros((*stored["xt"].shape, denoiser.config.embed_dim), np.float32)
        for x, t in zip(trajectory[:k], stored["step_t"], strict=True):
            target = target_of(params, x, target, t)
        columns = np.asarray(log_probs_of(params, target))[masked][:, : denoiser.mask_id + 1]
        close(
            f"targets: {name.removeprefix('targets_')}", columns, stored["target_log_probs_on_mask"]
        )


def test_reference_step_times(reference_golden, close):
    call = jax.jit(step_times, static_argnums=2, static_argnames="reference_times")
    for name in target_files(reference_golden):
        stored = arrays(reference_golden, name)
        k = len(stored["trajectory"]) - 1
        times = call(stored["t"], np.float32(stored["dt"]), k, reference_times=True)
        close("targets: step times", times, stored["step_t"])
