"""What `tests.forking` imports once for all commands: modules that define no flags and compute nothing."""

import os

from tests.forking import CPU

os.environ.update(CPU)

import sdtt_jax.data.preparation
import sdtt_jax.evaluation.suites
import sdtt_jax.interchange.load
import sdtt_jax.objectives
import sdtt_jax.training.loop  # noqa: F401
