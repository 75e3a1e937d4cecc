"""Top-k and nucleus filtering against the reference's.

Oracle: `top_k_top_p.npz` of a `reference_*` folder (golden/README.md): arrays `k{K}_p{P}`, 0 being off
for both. Dropped entries are -inf there and a finite -1e6 here.
"""

import re

import jax
import numpy as np

from sdtt_jax.ops.categorical import NEG_INFINITY, Filters, filter_logits
from tests.parity.reference import arrays


def test_filtered_logits(reference_golden):
    stored = arrays(reference_golden, "top_k_top_p")
    cases = [name for name in stored if name != "logits"]
    assert cases
    chosen = {}
    for name in cases:
        match = re.fullmatch(r"k(\d+)_p([\d.]+)", name)
        assert match, name
        top_k, top_p = int(match[1]), float(match[2]) or 1.0
        chosen[name] = Filters(top_k=top_k, top_p=top_p)
    # All in one program.
    ours = jax.jit(lambda x: {name: filter_logits(x, each) for name, each in chosen.items()})
    for name, filtered in ours(stored["logits"]).items():
        expected = np.where(np.isneginf(stored[name]), NEG_INFINITY, stored[name])
        np.testing.assert_array_equal(filtered, expected, err_msg=name)
