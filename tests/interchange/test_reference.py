"""The reference's layouts in and out; what the networks then compute is in tests/parity."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.safetensors import read_tensors
from sdtt_jax.interchange.tables.reference import (
    HUB_PREFIX,
    NESTED_PREFIX,
    read_causal,
    read_denoiser,
    write_causal,
    write_denoiser,
)
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import CausalConfig, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser

LENGTH = 32
SIZES = {"vocab_size": 200, "length": 8, "num_layers": 3, "embed_dim": 24, "num_heads": 2}
READERS = {
    "teacher_hub": (read_denoiser, write_denoiser, HUB_PREFIX),
    "student_hub": (read_denoiser, write_denoiser, HUB_PREFIX),
    "teacher_nested": (read_denoiser, write_denoiser, NESTED_PREFIX),
    "ar_hub": (read_causal, write_causal, HUB_PREFIX),
}


@pytest.fixture
def teacher(golden):
    """The teacher's tensors as on the hub."""
    return read_tensors(golden / "reference_tiny" / "teacher_hub.safetensors")


def _randomised(model):
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", READERS)
def test_a_published_file_comes_back_bit_for_bit(golden, name):
    """Oracle: the file itself, rotary frequencies included."""
    read, write, prefix = READERS[name]
    tensors = read_tensors(golden / "reference_tiny" / f"{name}.safetensors")
    config, params = read(tensors, length=LENGTH)
    written = write(config, params, prefix)
    assert written.keys() == tensors.keys()
    for key, array in tensors.items():
        assert written[key].dtype == array.dtype
        assert written[key].shape == array.shape
        assert written[key].tobytes() == array.tobytes(), key


def test_both_layouts_of_one_model_give_the_same_parameters(golden, teacher):
    nested = read_tensors(golden / "reference_tiny" / "teacher_nested.safetensors")
    bare = {name.removeprefix(HUB_PREFIX): array for name, array in teacher.items()}
    expected = read_denoiser(teacher, length=LENGTH)
    for tensors in (nested, bare):
        config, params = read_denoiser(tensors, length=LENGTH)
        assert config == expected[0]
        jax.tree.map(np.testing.assert_array_equal, params, expected[1])


@pytest.mark.parametrize("prefix", [HUB_PREFIX, NESTED_PREFIX, ""])
def test_our_denoiser_survives_export_and_import(prefix):
    config = DenoiserConfig(**SIZES, cond_dim=6, time_conditioned=True)
    params = _randomised(Denoiser(config))
    tensors = write_denoiser(config, params, prefix)
    again, back = read_denoiser(tensors, length=8, time_conditioned=True)
    assert again == config
    # The padding rows are not part of the published layout; they come back as zeros.
    params["embed"]["embedding"][201:] = 0
    params["head"]["linear"]["kernel"][:, 201:] = 0
    params["head"]["linear"]["bias"][201:] = 0
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_our_autoregressive_model_survives_export_and_import():
    config = CausalConfig(**SIZES)
    params = _randomised(CausalNetwork(config))
    again, back = read_causal(write_causal(config, params), length=8)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back["blocks"], params["blocks"])


def test_gradients_are_written_under_the_same_names(golden, teacher):
    """Any tree of the parameters' form can be written, so gradients compare by reference name."""
    config, params = read_denoiser(teacher, length=LENGTH)
    doubled = write_denoiser(config, jax.tree.map(lambda x: 2 * x, params), "")
    names = read_tensors(golden / "reference_tiny" / "grads_kl-bwd.safetensors").keys()
    assert names == doubled.keys() - {"rotary_emb.inv_freq"}
    for name in names:
        np.testing.assert_array_equal(doubled[name], 2 * teacher[HUB_PREFIX + name])


def test_a_causal_file_is_not_taken_for_a_denoiser_nor_the_reverse(golden, teacher):
    causal = read_tensors(golden / "reference_tiny" / "ar_hub.safetensors")
    with pytest.raises(
        CheckpointError, match=r"ar\.st: tensor backbone\.sigma_map\.mlp\.0\.weight"
    ):
        read_denoiser(causal, length=LENGTH, where="ar.st")
    with pytest.raises(CheckpointError, match=r"not part of this model: .*adaLN_modulation"):
        read_causal(teacher, length=LENGTH)


def test_missing_and_extra_tensors_are_named(teacher):
    del teacher["backbone.blocks.1.norm2.weight"]
    with pytest.raises(CheckpointError, match=r"missing: backbone\.blocks\.1\.norm2\.weight"):
        read_denoiser(teacher, length=LENGTH)
    teacher["backbone.blocks.1.norm2.weight"] = teacher["backbone.blocks.0.norm2.weight"]
    teacher["backbone.extra"] = np.ones(3, np.float32)
    with pytest.raises(CheckpointError, match=r"not part of this model: backbone\.extra"):
        read_denoiser(teacher, length=LENGTH)


@pytest.mark.parametrize(
    "name",
    [
        "vocab_embed.embedding",
        "rotary_emb.inv_freq",
        "sigma_map.mlp.0.weight",
        "blocks.0.mlp.0.weight",
        "blocks.1.attn_qkv.weight",
        "output_layer.linear.bias",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "other-shape"])
def test_every_damage_is_one_clear_error(teacher, name, damage):
    """The sizes come from some of these tensors, so they must not fail in the arithmetic."""
    full = HUB_PREFIX + name
    if damage == "missing":
        del teacher[full]
    else:
        teacher[full] = np.ones(() if damage == "empty" else (7, 5), np.float32)
    with pytest.raises(CheckpointError):
        read_denoiser(teacher, length=LENGTH)
