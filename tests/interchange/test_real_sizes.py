"""The paper's small size, and a deeper one. Oracle: the file's size, against the memory for loading it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sdtt_jax.interchange.safetensors import write_tensors
from sdtt_jax.interchange.tables.reference import HUB_PREFIX, denoiser_table
from sdtt_jax.networks import DenoiserConfig
from tests.forking import ROOT

# In "deep", one kernel of all blocks together is a third of the checkpoint, as in the paper's large size, so
# that a second copy of it would show; but "deep" has a tenth of the bytes.
SIZES = {
    "small": {"vocab_size": 50_257, "num_layers": 12, "embed_dim": 768, "num_heads": 12},
    "deep": {"vocab_size": 1000, "num_layers": 24, "embed_dim": 512, "num_heads": 16},
}


def generate(path, size):
    """Writes a published denoiser with repeating numbers; their values do not matter."""
    config = DenoiserConfig(length=1024, **SIZES[size])
    table = denoiser_table(config)
    numbers = np.random.default_rng(0).normal(size=10_007).astype(np.float32)
    tensors = {HUB_PREFIX + name: value for name, value in table.constants.items()}
    for entry in table.entries:
        array = np.resize(numbers, entry.shape)
        layers = range(config.num_layers) if "{layer}" in entry.name else range(1)
        tensors |= {HUB_PREFIX + entry.name.replace("{layer}", str(i)): array for i in layers}
    write_tensors(path, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_loading_holds_little_more_than_the_checkpoint(golden, tmp_path, size):
    """At most 1.2 times the file, on a mesh of eight devices: each parameter goes straight to its shards."""
    path = tmp_path / "model.safetensors"
    generate(path, size)
    stored = path.stat().st_size
    tiny = golden / "reference_tiny" / "teacher_hub.safetensors"
    program = "tests.interchange.memory_of_loading"
    done = subprocess.run(
        [sys.executable, "-m", program, str(path), str(tiny), "8"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    path.unlink()
    assert done.returncode == 0, done.stderr
    held = int(done.stdout)
    assert stored < held <= 1.2 * stored
