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
    """Its config and tensors are read as they are: nobody says which kind of model it is."""
    model = sdtt_jax.load(folder)
    with np.load(folder / "forward.npz") as file:
        tokens, expected = file["tokens"], file["logits"]
    order = np.arange(expected.shape[-1])
    if isinstance(model, sdtt_jax.Model):  # in which MASK follows all other tokens
        mask = model.facts["mask_row"]
        order = np.append(np.delete(order, mask), mask)
    found = np.stack([*model.logits(np.argsort(order)[tokens])])
    np.testing.assert_allclose(found, expected[..., order], rtol=1e-5, atol=1e-5)
