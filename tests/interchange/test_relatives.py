"""Phi-3 and Granite, whose tensors are rewritten to those of a Llama.

Oracles: the published tensors, cut and multiplied here by hand; tests/parity/test_hub_llama.py has their
logits as the hub's own library computes them.
"""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdtt_jax
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.interchange.layouts import open_published

LAYER = "model.layers.1."


@pytest.fixture
def changed(golden, tmp_path):
    """A function that copies a model of golden/hub_llama, with other fields and tensors; None: without it."""

    def change(name, fields=(), tensors=()):
        folder = tmp_path / name
        shutil.copytree(golden / "hub_llama" / name, folder, dirs_exist_ok=True)
        content = json.loads((folder / "config.json").read_text()) | dict(fields)
        (folder / "config.json").write_text(json.dumps(content))
        found = load_file(folder / "model.safetensors") | dict(tensors)
        kept = {tensor: array for tensor, array in found.items() if array is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


def test_fused_maps_of_phi3_are_cut_at_the_heads(golden):
    """4 query heads and 2 of key and value, of 4 features; the gate before what it multiplies."""
    folder = golden / "hub_llama" / "phi3"
    theirs, ours = load_file(folder / "model.safetensors"), open_published(folder).tensors
    parts = {"q": (0, 16), "k": (16, 24), "v": (24, 32)}
    for letter, (start, stop) in parts.items():
        expected = theirs[f"{LAYER}self_attn.qkv_proj.weight"][start:stop]
        np.testing.assert_array_equal(ours[f"{LAYER}self_attn.{letter}_proj.weight"], expected)
    fused = theirs[f"{LAYER}mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(ours[f"{LAYER}mlp.gate_proj.weight"], fused[:24])
    np.testing.assert_array_equal(ours[f"{LAYER}mlp.up_proj.weight"], fused[24:])
    assert set(ours.dtypes.values()) == {"F32"}
    assert len(ours) == len(theirs) + 2 * 3  # two layers, each with five maps in place of two


@pytest.mark.parametrize(("name", "tied"), [("granite", True), ("granite_untied", False)])
def test_factors_of_granite_go_into_its_weights(changed, golden, name, tied):
    """A stored half-precision tensor that is multiplied becomes float32; others keep dtype and bits."""
    theirs = load_file(golden / "hub_llama" / name / "model.safetensors")
    theirs = {tensor: array.astype(ml_dtypes.bfloat16) for tensor, array in theirs.items()}
    folder = changed(name, tensors=theirs)
    said = json.loads((folder / "config.json").read_text())
    embedding, residual = said["embedding_multiplier"], said["residual_multiplier"]
    factors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": 1 / said["logits_scaling"] / (embedding if tied else 1),
        f"{LAYER}self_attn.q_proj.weight": said["attention_multiplier"]
        * 4**0.5,  # heads of 4 features
        f"{LAYER}self_attn.o_proj.weight": residual,
        f"{LAYER}mlp.down_proj.weight": residual,
        f"{LAYER}self_attn.k_proj.weight": 1,
        f"{LAYER}mlp.up_proj.weight": 1,
        f"{LAYER}input_layernorm.weight": 1,
        f"{LAYER}post_attention_layernorm.weight": 1,
    } | ({} if tied else {"lm_head.weight": 1})
    ours = open_published(folder).tensors
    for tensor, factor in factors.items():
        expected = theirs[tensor].astype(np.float32) * np.float32(factor)
        np.testing.assert_allclose(np.float32(ours[tensor]), expected, rtol=1e-6)
        assert ours[tensor].dtype == (theirs[tensor].dtype if factor == 1 else np.float32)
        assert ours.dtypes[tensor] == ("BF16" if factor == 1 else "F32")


def test_a_tied_head_may_be_there_twice(changed, golden):
    """As exports of other libraries have it: both copies get the embedding's factor."""
    theirs = load_file(golden / "hub_llama" / "granite" / "model.safetensors")
    twice = changed(
        "granite", tensors={"lm_head.weight": theirs["model.embed_tokens.weight"].copy()}
    )
    tokens = np.arange(20, dtype=np.int32)[None] % 29
    once = sdtt_jax.load(golden / "hub_llama" / "granite")
    for one, other in zip(once.logits(tokens), sdtt_jax.load(twice).logits(tokens), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "called"), [("phi3", "Mistral"), ("granite", "Llama"), ("granite_untied", "Llama")]
)
def test_an_export_is_of_the_rewritten_network(golden, tmp_path, name, called):
    """The hub's libraries must not take it for the original, whose maps are fused and whose factors count."""
    model = sdtt_jax.load(golden / "hub_llama" / name)
    export_reference(model, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["model_type"] == called.lower()
    assert content["architectures"] == [f"{called}ForCausalLM"]
    assert not [field for field in content if "multiplier" in field or field == "logits_scaling"]
    tokens = np.arange(20, dtype=np.int32)[None] % 29
    again = sdtt_jax.load(tmp_path / "out")
    for one, other in zip(model.logits(tokens), again.logits(tokens), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_denoiser_made_from_one_is_told_by_its_class(changed):
    """What the config says of attention counts for relatives as for Llamas."""
    folder = changed(
        "granite", {"architectures": ["GraniteBidirectionalModel"], "mask_token_id": 5}
    )
    with pytest.raises(CheckpointError, match=r"'granite', whose .*architectures=\['GraniteBid"):
        sdtt_jax.load(folder)
    model = sdtt_jax.load(folder, causal=False, shift=True)
    assert (model.config.shift, model.facts["mask_row"]) == (True, 5)


@pytest.mark.parametrize(
    ("name", "fields", "tensors", "said"),
    [
        (
            "phi3",
            {"sliding_window": 63},
            {},
            "sliding_window=63, which is shorter than its texts of 64",
        ),
        ("phi3", {"num_attention_heads": None}, {}, "field 'num_attention_heads' is missing"),
        (
            "phi3",
            {"num_attention_heads": 5},
            {},
            r"qkv_proj\.weight has 32 rows, .* of 9 heads",
        ),
        (
            "phi3",
            {},
            {f"{LAYER}mlp.gate_up_proj.weight": np.zeros((50, 16), np.float32)},
            "50 rows",
        ),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, {}, "longrope"),
        ("phi3", {}, {f"{LAYER}self_attn.qkv_proj.weight": None}, r"layers\.1\.self_attn\.k_proj"),
        ("granite", {"logits_scaling": 0}, {}, "logits_scaling=0; it must be positive"),
        (
            "granite",
            {"residual_multiplier": -0.5},
            {},
            r"residual_multiplier=-0\.5; it must be pos",
        ),
        (
            "granite",
            {"embedding_multiplier": "12"},
            {},
            "embedding_multiplier='12'; it must be a num",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_what_contradicts_is_refused_by_field_or_tensor(changed, name, fields, tensors, said):
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(changed(name, fields, tensors))


def test_a_granite_without_factors_has_one_everywhere(changed, golden):
    """The hub's own defaults; also that of attention, which then is not divided by a head's root."""
    names = "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"
    theirs = load_file(golden / "hub_llama" / "granite" / "model.safetensors")
    ours = open_published(changed("granite", dict.fromkeys(names))).tensors
    for tensor, array in theirs.items():
        factor = 2 if "q_proj" in tensor else 1
        np.testing.assert_array_equal(ours[tensor], array * np.float32(factor))
