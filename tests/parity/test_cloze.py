"""The evaluation's path to the reference's suffix likelihood: rows, batches, maskings given.

Oracle: `suffix_nll.npz` of a `reference_*` folder (golden/README.md), float32, within 1e-5 relative.
"""

import numpy as np
import pytest

from sdtt_jax.evaluation.cloze import greedy_hits, replayed_bounds
from sdtt_jax.evaluation.continuations import Continuation, Layout
from tests.parity.reference import arrays, network


@pytest.fixture(scope="module")
def stored(reference_golden):
    return arrays(reference_golden, "suffix_nll")


@pytest.fixture(scope="module")
def student(reference_golden):
    student = network(reference_golden, "student_hub")
    return student.diffusion, student.params


def test_suffix_likelihood(stored, student, close):
    """The stored suffix ends in the token that the reference never masks; batches of three."""
    item = Continuation(stored["prefix"], stored["suffix"][:-1])
    layout = Layout(eos_id=int(stored["suffix"][-1]))
    bounds = replayed_bounds(*student, item, stored["xt"], stored["t"], layout, batch_size=3)
    close("cloze: nll per masking", bounds, stored["nll_per_masking"])
    close("cloze: nll", bounds.mean(), stored["nll"])


def test_greedy_suffix(stored, student):
    """A hit is the reference's greedy text, and not its true text where that differs."""
    layout = Layout(eos_id=int(stored["suffix"][-1]))
    greedy, true = stored["greedy"][:-1], stored["suffix"][:-1]
    items = [Continuation(stored["prefix"], suffix) for suffix in (greedy, true)]
    hits = greedy_hits(*student, items, layout, batch_size=2)
    assert hits.tolist() == [True, np.array_equal(greedy, true)]
