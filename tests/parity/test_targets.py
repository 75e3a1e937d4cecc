"""Distillation targets against the reference's, its stored trajectories replayed.

Oracle: `targets_k*_*.npz` of a `reference_*` folder (golden/README.md), float32, within 1e-5 relative.
The draws themselves are not reproducible across frameworks, so the states are the reference's and the
stitching is ours.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.forward import masked_log_probs
from sdtt_jax.distillation.targets import step_times, stitch
from tests.parity.reference import SCHEDULE, arrays, network, target_files


def test_targets_of_replayed_trajectories(reference_golden, close):
    files = target_files(reference_golden)
    assert files
    denoiser, params = network(reference_golden, "teacher_hub")

    @jax.jit
    def target_of(x, target, sigma):
        return stitch(target, denoiser.hidden(params, x, sigma), x, denoiser.mask_id)

    for name in files:
        stored = arrays(reference_golden, name)
        trajectory, masked = stored["trajectory"], stored["mask"]
        np.testing.assert_array_equal(trajectory[0], stored["xt"])
        np.testing.assert_array_equal(masked, stored["xt"] == denoiser.mask_id)
        k = len(trajectory) - 1
        target = jnp.zeros((*stored["xt"].shape, denoiser.config.embed_dim))
        for x, t in zip(trajectory[:k], stored["step_t"], strict=True):
            target = target_of(x, target, SCHEDULE.sigma(jnp.asarray(t)))
        log_probs = masked_log_probs(denoiser.logits(params, target), denoiser.mask_id)
        columns = np.asarray(log_probs)[masked][:, : denoiser.mask_id + 1]
        close(
            f"targets: {name.removeprefix('targets_')}", columns, stored["target_log_probs_on_mask"]
        )


def test_reference_step_times(reference_golden, close):
    for name in target_files(reference_golden):
        stored = arrays(reference_golden, name)
        k = len(stored["trajectory"]) - 1
        times = step_times(
            jnp.asarray(stored["t"]), jnp.float32(stored["dt"]), k, reference_times=True
        )
        close("targets: step times", times, stored["step_t"])
