"""Self-distillation through time: teacher trajectories, divergences, rounds."""

from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.distillation.loss import distillation_terms, divergence_terms
from sdtt_jax.distillation.rounds import DistillConfig, round_dt
from sdtt_jax.distillation.targets import step_times, stitch, teacher_targets

__all__ = [
    "DIVERGENCES",
    "DistillConfig",
    "distillation_terms",
    "divergence_terms",
    "round_dt",
    "step_times",
    "stitch",
    "teacher_targets",
]
