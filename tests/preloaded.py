"""What `tests.forking` imports once for all commands: modules that define no flags and compute nothing."""

import gc
import os

from tests.forking import CPU

os.environ.update(CPU)

import experiments.stages.runner  # noqa: F401
import sdtt_jax.data.preparation
import sdtt_jax.evaluation.suites
import sdtt_jax.interchange.load
import sdtt_jax.objectives
import sdtt_jax.training.loop  # noqa: F401

# No forked process looks at all of it again, and copies its pages, when it collects garbage.
gc.collect()
gc.freeze()
