"""The renaming tables' machinery, on a table of two small tensors."""

import numpy as np
import pytest

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.renaming import Entry, Table, find_prefix, read_params, write_params

TABLE = Table(
    entries=[
        Entry("table", "embed/embedding", (3, 2), vocab_axis=0),
        Entry("head", "head/kernel", (3, 2), transpose=True, vocab_axis=0),
        Entry("h.{layer}.qkv", "blocks/qkv", (6, 2), transpose=True, reshape=(2, 3, 2)),
    ],
    num_layers=2,
    padded_vocab=4,
    constants={"angles": np.array([1.0, 0.1], np.float32)},
    ignored=["h.{layer}.mask"],
)


def _tensors():
    values = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    return {
        "p.table": values[0, :6].reshape(3, 2),
        "p.head": values[1, :6].reshape(3, 2),
        "p.h.0.qkv": values[2].reshape(6, 2),
        "p.h.1.qkv": values[3].reshape(6, 2),
        "p.angles": TABLE.constants["angles"],
    }


def test_tensors_are_renamed_transposed_padded_reshaped_and_stacked():
    tensors = _tensors()
    params = read_params(TABLE, tensors, "p.", "here")
    assert params.keys() == {"embed", "head", "blocks"}
    padding = np.zeros((1, 2), np.float32)
    table = params["embed"]["embedding"]
    np.testing.assert_array_equal(table, np.concatenate([tensors["p.table"], padding]))
    kernel = params["head"]["kernel"]
    np.testing.assert_array_equal(kernel, np.concatenate([tensors["p.head"], padding]).T)
    assert params["blocks"]["qkv"].shape == (2, 2, 3, 2)
    for layer in range(2):
        for out in range(6):
            ours = params["blocks"]["qkv"][layer, :, out // 2, out % 2]
            np.testing.assert_array_equal(ours, tensors[f"p.h.{layer}.qkv"][out])


def test_writing_inverts_reading_bit_for_bit():
    tensors = _tensors()
    written = write_params(TABLE, read_params(TABLE, tensors, "p.", "here"), "q.")
    assert written.keys() == {"q" + name[1:] for name in tensors}
    for name, array in tensors.items():
        assert written["q" + name[1:]].tobytes() == array.tobytes()
        assert written["q" + name[1:]].flags.c_contiguous


def test_sixteen_bit_weights_become_float32():
    tensors = {name: array.astype(np.float16) for name, array in _tensors().items()}
    tensors["p.angles"] = TABLE.constants["angles"]
    params = read_params(TABLE, tensors, "p.", "here")
    assert params["embed"]["embedding"].dtype == np.float32
    np.testing.assert_array_equal(params["embed"]["embedding"][:3], tensors["p.table"])


def test_constants_may_be_absent_and_ignored_tensors_present():
    tensors = _tensors()
    del tensors["p.angles"]
    tensors["p.h.1.mask"] = np.ones(7)
    read_params(TABLE, tensors, "p.", "here")


def test_missing_tensors_are_named():
    tensors = _tensors()
    del tensors["p.h.1.qkv"]
    with pytest.raises(CheckpointError, match=r"here: 1 tensor is missing: p\.h\.1\.qkv;"):
        read_params(TABLE, tensors, "p.", "here")


def test_unexpected_tensors_are_named_and_a_long_list_is_cut():
    tensors = _tensors() | {f"p.h.{i}.qkv": np.ones((6, 2), np.float32) for i in range(2, 9)}
    message = r"here: 7 tensors are not part of this model: p\.h\.2\.qkv, .* and 2 more;"
    with pytest.raises(CheckpointError, match=message):
        read_params(TABLE, tensors, "p.", "here")


def test_a_tensor_of_another_shape_is_named():
    tensors = _tensors() | {"p.head": np.ones((5, 2), np.float32)}
    with pytest.raises(CheckpointError, match=r"p\.head has shape \[5, 2\].* needs \[3, 2\]"):
        read_params(TABLE, tensors, "p.", "here")


@pytest.mark.parametrize("angles", [[1.0, 0.2], [1.0]], ids=["other-values", "other-shape"])
def test_another_constant_is_refused(angles):
    tensors = _tensors() | {"p.angles": np.array(angles, np.float32)}
    with pytest.raises(CheckpointError, match=r"p\.angles is not what this model computes"):
        read_params(TABLE, tensors, "p.", "here")


def test_parameters_of_another_model_are_not_written():
    params = read_params(TABLE, _tensors(), "p.", "here")
    with pytest.raises(CheckpointError, match=r"lack head/kernel;"):
        write_params(TABLE, {k: v for k, v in params.items() if k != "head"}, "p.")
    with pytest.raises(CheckpointError, match=r"hold unexpected extra/bias;"):
        write_params(TABLE, params | {"extra": {"bias": np.ones(1)}}, "p.")
    with pytest.raises(CheckpointError, match=r"blocks/qkv has 3 layers, but the config says 2"):
        write_params(TABLE, params | {"blocks": {"qkv": np.ones((3, 2, 3, 2))}}, "p.")
    with pytest.raises(CheckpointError, match=r"embed/embedding has shape \[5, 2\]"):
        write_params(TABLE, params | {"embed": {"embedding": np.ones((5, 2))}}, "p.")


def test_the_prefix_is_found_or_what_was_tried_is_named():
    assert find_prefix({"a.a.x": 0}, "x", ("a.a.", "a.", ""), "here") == "a.a."
    assert find_prefix({"x": 0}, "x", ("a.a.", "a.", ""), "here") == ""
    with pytest.raises(CheckpointError, match=r"here: none of a\.x, x is there"):
        find_prefix({"y": 0}, "x", ("a.", ""), "here")
