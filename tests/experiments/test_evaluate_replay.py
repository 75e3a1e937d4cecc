"""Given maskings on the command line. Oracle: `suffix_nll.npz` of golden/reference_tiny."""

import json

import numpy as np
import pytest

from experiments.evaluating.output import Output
from experiments.evaluating.replaying import replay
from experiments.evaluating.settings import Settings
from experiments.evaluating.subject import load_subject
from sdtt_jax.errors import DataError
from tests.experiments.processes import call


@pytest.fixture(scope="module")
def reference(golden):
    return golden / "reference_tiny"


def test_the_reference_suffix_likelihood(reference, tmp_path):
    path = reference / "suffix_nll.npz"
    done = call(
        "evaluate",
        f"--checkpoint={reference / 'student_hub.safetensors'}",
        "--suite=lambada",
        f"--maskings={path}",
        "--batch_size=3",
        f"--output={tmp_path / 'x.json'}",
    )
    assert done.status == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())["items"]["replayed/bound"]["result"]
    with np.load(path) as stored:
        close = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(found["nll_per_masking"], stored["nll_per_masking"], **close)
        assert found["nll"] == pytest.approx(float(stored["nll"]), rel=1e-5)
        assert found["greedy"] == stored["greedy"].tolist()


@pytest.mark.parametrize("fault", ["lacks an array", "make", "cannot be read"])
def test_a_wrong_file_is_named(reference, tmp_path, fault):
    with np.load(reference / "suffix_nll.npz") as stored:
        arrays = dict(stored)
    path = tmp_path / "wrong.npz"
    if fault == "lacks an array":
        del arrays["xt"]
    elif fault == "make":
        arrays["t"] = arrays["t"][:-1]
    np.savez(path, **arrays)
    if fault == "cannot be read":
        path.write_text("no zip")
    name = str(reference / "student_hub.safetensors")
    subject = load_subject(Settings(batch_size=3), name, "none", "none", None)
    output = Output(tmp_path / "x.json", subject.identity)
    with pytest.raises(DataError, match=fault) as caught:
        replay(subject, output, str(path), print)
    assert str(path) in str(caught.value)
    assert output.items == {}
