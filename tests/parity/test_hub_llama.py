"""The Llama family as the hub's own library computes it.

Oracle: `forward.npz` of each folder in golden/hub_llama (golden/README.md), float32, within 1e-5 relative.
"""

from pathlib import Path

import numpy as np
import pytest

import sdtt_jax

FOLDERS = sorted((Path(__file__).parent.parent / "golden" / "hub_llama").glob("*/"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_of_what_the_hubs_library_wrote(folder):
    """Its config and tensors are read as they are: nobody says that the model is causal."""
    model = sdtt_jax.load(folder)
    with np.load(folder / "forward.npz") as expected:
        found = np.stack([*model.logits(expected["tokens"])])
        np.testing.assert_allclose(found, expected["logits"], rtol=1e-5, atol=1e-5)
