"""Each axis of the mesh alone and all three, on eight virtual devices, and several processes over gloo.

Oracle: one device.
"""

import itertools
import json
import re

import numpy as np
import pytest

from tests.multidevice.launching import printed_by, together
from tests.multidevice.programs import (
    BATCH,
    BRIEF,
    LENGTH,
    LLAMA_MESHES,
    MESHES,
    NARROW_MESHES,
    ONE,
    STEPS,
    saved_by,
)
from tests.sharing import once

# The first test's setup runs all programs of all meshes: the longest setup of all on cores without AVX-512.
pytestmark = [pytest.mark.multidevice, pytest.mark.slow, pytest.mark.timeout(1500)]


def on_all_meshes(folder):
    return printed_by("tests.multidevice.programs", str(folder))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    _, found = once(tmp_path_factory, "meshes", on_all_meshes)
    return {m if isinstance(m := r["mesh"], str) else tuple(m): r for r in found}


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """The brief program by 4 processes, which go on from what one saved, and by one, which goes on from that.

    Each of the four holds only some rows of a batch, and only some of a matrix that is split.
    """
    meshes, _ = once(tmp_path_factory, "meshes", on_all_meshes)

    def run(folder):
        found, before = {}, meshes / saved_by(BRIEF)
        for count in (4, 1):
            here = folder / f"{count} processes"
            arguments = str(here), str(before)
            first, *_ = together(count, 8 // count, "tests.multidevice.processes", *arguments)
            found[count], before = json.loads(first.splitlines()[-1]), here
        return found

    _, found = once(tmp_path_factory, "processes", run)
    return {int(count): result for count, result in found.items()}


@pytest.fixture(scope="module")
def alone(results):
    return results[1, 1, 1]


@pytest.fixture(params=MESHES, ids=str)
def several(request, results):
    return results[request.param]


def test_losses_are_those_of_one_device_to_rounding(alone, several):
    """Three steps of teacher and distillation; float32 sums in another order differ by 1e-6 or so."""
    for stage in ("teacher", "distill"):
        assert min(alone[f"{stage} losses"]) > 0.1, (
            "to rounding, numbers near zero would say nothing"
        )
        np.testing.assert_allclose(several[f"{stage} losses"], alone[f"{stage} losses"], rtol=2e-5)


def test_the_trained_state_is_that_of_one_device_to_rounding(alone, several):
    """Parameters, moments, average and teacher, leaf by leaf."""
    assert several["values"].keys() == alone["values"].keys()
    for path, value in several["values"].items():
        np.testing.assert_allclose(value, alone["values"][path], rtol=2e-3, atol=2e-3, err_msg=path)


def test_a_coupled_round_is_that_of_one_device_to_rounding(alone, results):
    """Noise, trajectories, soft targets and three steps; the noise's network is split as others are."""
    one, several = alone["coupled"], results[2, 2, 2]["coupled"]
    assert min(one["losses"]) > 0.1
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=2e-5)
    for path, value in several["values"].items():
        np.testing.assert_allclose(value, one["values"][path], rtol=2e-3, atol=2e-3, err_msg=path)
    assert several["noise"] == [None, "model"]


def test_texts_are_those_of_one_device(alone, several):
    """With equal weights not a token would differ (see tests/diffusion); after training, a few may."""
    differing = np.mean(np.array(several["texts"]) != np.array(alone["texts"]))
    assert differing <= 0.01, differing


def test_which_rows_a_batch_holds_does_not_depend_on_the_mesh(alone, several):
    """Oracle: ten rows in threes; a mesh of eight devices computes repeats beside them."""
    found = [[row, row // 3] for row in range(10)]
    assert several["batches"] == alone["batches"] == found


def test_initial_parameters_do_not_depend_on_the_mesh(alone, several):
    """Bit for bit."""
    assert several["initial"] == alone["initial"]


def test_everything_lies_where_the_rules_say(several):
    data, fsdp, model = several["mesh"]
    specs = several["specs"]
    expected = [None, "fsdp", "model"]
    assert specs["params/blocks/mlp/up/kernel"] == expected
    assert specs["ema_params/blocks/mlp/up/kernel"] == expected
    moments = [s for p, s in specs.items() if "opt_state" in p and p.endswith("mlp/up/kernel")]
    assert moments
    assert all(spec == expected for spec in moments)
    assert several["shard"] == [BATCH // (data * fsdp), LENGTH], model


def test_state_on_each_device_shrinks_with_the_axes_that_split_it(alone, several):
    """The matrices of the blocks shrink to 1/(fsdp · model), in parameters, moments, average and teacher. The
    whole shrinks but for vectors and the time embedding: 4 % of this small network, which are left whole."""
    _, fsdp, model = several["mesh"]
    kernels = [path for path in several["shards"] if "blocks/mlp" in path and "kernel" in path]
    assert len(kernels) >= 2 * 4, "parameters, average, teacher and moments"
    for path in kernels:
        assert several["shards"][path] * fsdp * model == alone["shards"][path], path
    if model == 1:
        for stage in ("teacher", "distill"):
            share = several[f"{stage} bytes"] / alone[f"{stage} bytes"]
            assert 1 / fsdp <= share <= 1 / fsdp + 0.04


def test_compiled_steps_exchange_what_their_mesh_implies(alone, several):
    """Without a mesh, a constraint silently does nothing, so the compiled program is inspected."""
    assert alone["distill collectives"] == {}
    data, fsdp, model = several["mesh"]
    for stage in ("teacher", "distill"):
        found = several[f"{stage} collectives"]
        crossed = {axis for name in found for axis in name.split(" over ")[1].split("+")}
        expected = {a for a, n in (("data", data), ("fsdp", fsdp), ("model", model)) if n > 1}
        assert crossed == expected, found
        if fsdp > 1:
            assert any(name.startswith("all-gather") and "fsdp" in name for name in found), found


def test_gradients_cross_the_data_axis_once(results):
    """Data parallelism exchanges each gradient in float32, and little else."""
    found = results[8, 1, 1]["teacher collectives"]
    parameters = results[8, 1, 1]["parameters"]
    assert set(found) == {"all-reduce over data"}
    # A little less: the gradients of adaLN and time embedding are outer products of what is exchanged.
    assert 0.9 * parameters <= found["all-reduce over data"] <= 1.05 * parameters


def test_a_checkpoint_of_one_mesh_goes_on_on_another(results):
    """Restored bit for bit; the next loss is the same on every mesh, to rounding."""
    order = [results[mesh] for mesh in ((1, 1, 1), *MESHES)]
    for saved, other in itertools.pairwise(order):
        assert other["restored"] == saved["digest"]
        assert other["went on by"] == STEPS + 1
        assert other["went on"] == pytest.approx(order[1]["went on"], rel=1e-3)


def test_several_processes_compute_what_one_does(by_processes):
    one, several = by_processes[1], by_processes[4]
    assert several["processes"] == 4
    assert min(one["distill losses"]) > 0.1, (
        "a student that is its teacher would have nothing to learn"
    )
    np.testing.assert_allclose(several["distill losses"], one["distill losses"], rtol=2e-5)
    assert several["distill collectives"] == one["distill collectives"]
    for path, value in several["values"].items():
        np.testing.assert_allclose(value, one["values"][path], rtol=2e-3, atol=2e-3, err_msg=path)


def test_several_processes_load_a_published_model_together(by_processes):
    """Oracle: the logits of a process's own copy, to float32 rounding."""
    assert by_processes[4]["published"] < 2e-5
    # One that finds other files under the name of the model is named, before anything is computed.
    said = (
        r"model .*teacher_hub\.safetensors of process 2 and of process 0 differ \(.*; copy the same"
    )
    assert re.search(said, by_processes[4]["other files"])


def test_a_checkpoint_goes_on_with_another_number_of_processes(results, by_processes):
    """Of one process by four, and of four by one."""
    assert by_processes[4]["restored"] == results[BRIEF]["digest"]
    assert by_processes[1]["restored"] == by_processes[4]["digest"]
    assert by_processes[4]["went on by"] == by_processes[1]["went on by"] == STEPS + 1


def test_several_processes_go_on_as_one_does(results, by_processes):
    """The next loss, from the same checkpoint."""
    (after,) = [other for mesh, other in itertools.pairwise(MESHES) if mesh == BRIEF]
    assert by_processes[4]["went on"] == pytest.approx(results[after]["went on"], rel=1e-3)


@pytest.mark.parametrize("mesh", NARROW_MESHES[1:], ids=str)
def test_a_gradient_with_products_of_bfloat16_is_that_of_one_device_to_rounding(results, mesh):
    """Loss and gradient. Sums in another order move a few numbers by a step of bfloat16, and so the two sums
    over each leaf by 1e-5 of its norm or so."""
    one, several = (results["narrow"][str(sizes)] for sizes in (ONE, mesh))
    assert several["loss"] == pytest.approx(one["loss"], rel=2e-5)
    for path, value in several["gradient"].items():
        norm, _ = expected = one["gradient"][path]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-3 * norm, err_msg=path)


@pytest.mark.parametrize("mesh", LLAMA_MESHES[1:], ids=str)
def test_grouped_heads_and_adapters_compute_what_one_device_does(results, mesh):
    """Two key heads are split over a model axis of two, and whole on each device of one of eight. Adapters
    are split as the matrices that they adapt."""
    one, several = (results["llama"][str(sizes)] for sizes in (ONE, mesh))
    np.testing.assert_allclose(several["logits"], one["logits"], atol=1e-5)
    for path, value in several["gradient"].items():
        np.testing.assert_allclose(value, one["gradient"][path], rtol=1e-4, atol=5e-4, err_msg=path)
    specs = several["specs"]
    assert specs["blocks/attn_q/kernel"][2] == "model"
    assert specs["blocks/attn_k/kernel"][2] == ("model" if mesh[2] == 2 else None)
    assert specs["adapters/blocks/attn_k/b"][2] == ("model" if mesh[2] == 2 else None)
    assert specs["adapters/blocks/attn_q/b"] == [None, None, "model", None]
    assert specs["adapters/blocks/mlp/down/a"] == [None, "model", None]
