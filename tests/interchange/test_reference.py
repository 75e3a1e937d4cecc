"""The reference's layouts in and out; what the networks then compute is in tests/parity."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.layouts import published_params, recognised
from sdtt_jax.interchange.renaming import Stored, write_params
from sdtt_jax.interchange.tables.reference import CAUSAL, DENOISER, HUB_PREFIX, NESTED_PREFIX
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import CausalConfig, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser

LENGTH = 32
SIZES = {"vocab_size": 200, "length": 8, "num_layers": 3, "embed_dim": 24, "num_heads": 2}
PUBLISHED = {
    "teacher_hub": (DENOISER, HUB_PREFIX),
    "student_hub": (DENOISER, HUB_PREFIX),
    "teacher_nested": (DENOISER, NESTED_PREFIX),
    "ar_hub": (CAUSAL, HUB_PREFIX),
}


def read(layout, tensors, *, length=LENGTH, file="the checkpoint", **stored):
    """Config and parameters."""
    published = recognised(layout, tensors, Stored({"length": length} | stored), file)
    return published.config, published_params(published)


def write(layout, config, params, prefix=HUB_PREFIX):
    return write_params(layout.table(config), params, prefix)


@pytest.fixture
def teacher(golden):
    """The teacher's tensors as on the hub."""
    return load_file(golden / "reference_tiny" / "teacher_hub.safetensors")


def _randomised(model):
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_comes_back_bit_for_bit(golden, name):
    """Oracle: the file itself, rotary frequencies included."""
    layout, prefix = PUBLISHED[name]
    tensors = load_file(golden / "reference_tiny" / f"{name}.safetensors")
    config, params = read(layout, tensors)
    written = write(layout, config, params, prefix)
    assert written.keys() == tensors.keys()
    for key, array in tensors.items():
        assert written[key].dtype == array.dtype
        assert written[key].shape == array.shape
        assert written[key].tobytes() == array.tobytes(), key


def test_both_layouts_of_one_model_give_the_same_parameters(golden, teacher):
    nested = load_file(golden / "reference_tiny" / "teacher_nested.safetensors")
    bare = {name.removeprefix(HUB_PREFIX): array for name, array in teacher.items()}
    expected = read(DENOISER, teacher)
    for tensors in (nested, bare):
        config, params = read(DENOISER, tensors)
        assert config == expected[0]
        jax.tree.map(np.testing.assert_array_equal, params, expected[1])


@pytest.mark.parametrize("prefix", [HUB_PREFIX, NESTED_PREFIX, ""])
def test_our_denoiser_survives_export_and_import(prefix):
    config = DenoiserConfig(**SIZES, cond_dim=6, time_conditioned=True)
    params = _randomised(Denoiser(config))
    tensors = write(DENOISER, config, params, prefix)
    again, back = read(DENOISER, tensors, length=8, time_conditioning=True)
    assert again == config
    # The padding rows are not part of the published layout; they come back as zeros.
    params["embed"]["embedding"][201:] = 0
    params["head"]["linear"]["kernel"][:, 201:] = 0
    params["head"]["linear"]["bias"][201:] = 0
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_our_autoregressive_model_survives_export_and_import():
    config = CausalConfig(**SIZES)
    params = _randomised(CausalNetwork(config))
    again, back = read(CAUSAL, write(CAUSAL, config, params), length=8)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back["blocks"], params["blocks"])


def test_gradients_are_written_under_the_same_names(golden, teacher):
    """Any tree of the parameters' form can be written, so gradients compare by the reference's names."""
    config, params = read(DENOISER, teacher)
    doubled = write(DENOISER, config, jax.tree.map(lambda x: 2 * x, params), "")
    names = load_file(golden / "reference_tiny" / "grads_kl-bwd.safetensors").keys()
    assert names == doubled.keys() - {"rotary_emb.inv_freq"}
    for name in names:
        np.testing.assert_array_equal(doubled[name], 2 * teacher[HUB_PREFIX + name])


def test_a_causal_file_is_not_taken_for_a_denoiser_nor_the_reverse(golden, teacher):
    causal = load_file(golden / "reference_tiny" / "ar_hub.safetensors")
    with pytest.raises(
        CheckpointError, match=r"ar\.st: none of .*backbone\.sigma_map\.mlp\.0\.weight"
    ):
        read(DENOISER, causal, file="ar.st")
    with pytest.raises(CheckpointError, match=r"not part of this model: .*adaLN_modulation"):
        read(CAUSAL, teacher)


def test_missing_and_extra_tensors_are_named(teacher):
    del teacher["backbone.blocks.1.norm2.weight"]
    with pytest.raises(CheckpointError, match=r"missing: backbone\.blocks\.1\.norm2\.weight"):
        read(DENOISER, teacher)
    teacher["backbone.blocks.1.norm2.weight"] = teacher["backbone.blocks.0.norm2.weight"]
    teacher["backbone.extra"] = np.ones(3, np.float32)
    with pytest.raises(CheckpointError, match=r"not part of this model: backbone\.extra"):
        read(DENOISER, teacher)


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
    """Some of these tensors give the sizes, whose arithmetic must not raise errors of its own."""
    full = HUB_PREFIX + name
    if damage == "missing":
        del teacher[full]
    else:
        teacher[full] = np.ones(() if damage == "empty" else (7, 5), np.float32)
    with pytest.raises(CheckpointError):
        read(DENOISER, teacher)
