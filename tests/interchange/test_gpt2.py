"""GPT-2 folders in and out; what the network then computes is in tests/parity/test_gpt2.py."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.layouts import open_published, published_params, recognised
from sdtt_jax.interchange.renaming import Stored, write_params
from sdtt_jax.interchange.tables.gpt2 import GPT2, gpt2_table


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the small GPT-2 that a test may damage."""
    return shutil.copytree(golden / "gpt2_tiny", tmp_path / "gpt2")


@pytest.fixture
def tensors(golden):
    """Its tensors."""
    return load_file(golden / "gpt2_tiny" / "model.safetensors")


def load_gpt2(folder):
    """Config and parameters of a folder in the hub's layout."""
    published = open_published(folder)
    return published.config, published_params(published)


def read_gpt2(folder, tensors):
    stored = Stored(json.loads((folder / "config.json").read_text()))
    return published_params(recognised(GPT2, tensors, stored))


def test_a_published_file_comes_back_bit_for_bit(folder, tensors):
    config, params = load_gpt2(folder)
    written = write_params(gpt2_table(config), params, "transformer.")
    assert written.keys() == tensors.keys()
    for name, array in tensors.items():
        assert written[name].tobytes() == array.tobytes(), name


def test_old_exports_without_prefix_and_with_causal_masks_are_read(folder, tensors):
    """The hub's oldest files have bare names, mask buffers, sometimes a copy of the tied head."""
    config, expected = load_gpt2(folder)
    old = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    for layer in range(config.num_layers):
        old[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 4, 4), np.float32))
        old[f"h.{layer}.attn.masked_bias"] = np.float32(-1e4)
    old["lm_head.weight"] = old["wte.weight"].copy()
    params = read_gpt2(folder, old)
    np.testing.assert_array_equal(
        params["blocks"]["attn_qkv"]["kernel"], expected["blocks"]["attn_qkv"]["kernel"]
    )


def test_an_untied_head_is_refused(folder, tensors):
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from transformer\.wte"):
        read_gpt2(folder, tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1})


def test_a_config_of_another_size_is_refused_with_the_tensor_s_name(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_positions": 64}))
    with pytest.raises(CheckpointError, match=r"transformer\.wpe\.weight has shape \[48, 48\]"):
        load_gpt2(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"is_causal": False}, "is_causal=False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"logit_scale": 0.5}, r"logit_scale=0\.5"),
        ({"n_inner": 50}, "n_inner=50"),
        ({"n_head": 7}, "num_heads"),
        ({"n_layer": None}, "field 'n_layer' is missing"),
    ],
    ids=str,
)
def test_configs_of_other_networks_are_refused_by_field(folder, change, message):
    mapping = json.loads((folder / "config.json").read_text()) | change
    mapping = {
        key: value for key, value in mapping.items() if key not in change or value is not None
    }
    with pytest.raises(CheckpointError, match=message):
        GPT2.config({}, "", Stored(mapping), "model.safetensors")


@pytest.mark.parametrize("text", [None, "{", "[1]"], ids=["absent", "cut", "not-an-object"])
def test_an_unreadable_config_file_is_named(folder, text):
    path = folder / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_gpt2(folder)
