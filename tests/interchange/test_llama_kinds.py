"""Causal model or denoiser: what a config of the Llama family says of it, whatever its `model_type`.

Oracle: the words of the fields. A bidirectional network that is read as a causal one gives other numbers.
"""

import pytest

import sdtt_jax
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.interchange.load import load_network
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.networks.config import LlamaDenoiserConfig
from tests.interchange.llama_models import MASK, repository

SIGNS = {
    "mask_token_id": MASK,
    "mask_id": MASK,
    "is_causal": False,
    "use_bidirectional_attention": True,
    "architectures": ["LlamaBidirectionalModel"],
}
CLASSES = ["LlamaForMaskedDiffusion", "LlamaForMaskedLM", "LlamaEncoderModel"]


@pytest.mark.parametrize(
    "sign", [*SIGNS.items(), *(("architectures", [c]) for c in CLASSES)], ids=str
)
def test_what_no_causal_model_says_is_asked_about(tmp_path, sign):
    """One sentence names the field and what settles it; it then loads as the user says."""
    name, value = sign
    folder = repository(tmp_path / "m", "llama", **{name: value})
    with pytest.raises(CheckpointError) as caught:
        load_network(folder)
    sentence = str(caught.value)
    assert (
        f"config.json says model_type='llama', whose networks are causal, but also {name}="
        in sentence
    )
    assert "pass causal=True for a causal model, or causal=False with mask_id and shift" in sentence
    assert isinstance(sdtt_jax.load(folder, causal=True), CausalModel)
    denoiser = sdtt_jax.load(folder, causal=False, mask_id=MASK, shift=True)
    assert isinstance(denoiser.config, LlamaDenoiserConfig)


@pytest.mark.parametrize("name", SIGNS)
def test_a_denoiser_by_its_config_loads_as_one_where_all_is_known(tmp_path, name):
    more = {"mask_token_id": MASK, "shift": False, name: SIGNS[name]}
    model = load_network(repository(tmp_path / "m", "qwen3", **more))
    assert (type(model.config), model.config.shift) == (LlamaDenoiserConfig, False)
    assert model.facts["mask_row"] == MASK


@pytest.mark.parametrize(
    "unsaid",
    [
        {"mask_token_id": None},
        {"is_causal": True, "mask_token_id": MASK},
        {"use_bidirectional_attention": False},
        # The default of the hub's configs, which causal models state too.
        {"is_decoder": False},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["LlamaModel"]},
    ],
    ids=str,
)
def test_what_causal_models_say_changes_nothing(tmp_path, unsaid):
    assert isinstance(load_network(repository(tmp_path / "m", "llama", **unsaid)), CausalModel)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("dream", {"is_causal": True}, "is_causal=True, .* read as a denoiser since causal is not"),
        (
            "llama",
            {"is_causal": False, "causal": True},
            "is_causal=False, .* read as a causal model",
        ),
    ],
)
def test_a_config_that_contradicts_its_kind_is_refused(tmp_path, name, change, said):
    with pytest.raises(CheckpointError, match=said):
        load_network(repository(tmp_path / "m", name, **change))


@pytest.mark.parametrize("name", ["block_size", "block_length", "bd_size"])
def test_denoisers_of_blocks_are_refused(tmp_path, name):
    """SDAR, Fast-dLLM v2 and dLLM's BD3-LM: a token sees none of the blocks after its own."""
    folder = repository(tmp_path / "m", "a2d-qwen3", **{name: 32})
    with pytest.raises(
        CheckpointError, match=rf"config.json says {name}=32: a token sees no block"
    ):
        load_network(folder)
    assert load_network(repository(tmp_path / "whole", "a2d-qwen3", **{name: 4096}))
    assert load_network(repository(tmp_path / "causal", "qwen3", **{name: 32}))  # of its texts


def test_a_denoiser_that_goes_out_as_a_causal_model_says_so(tmp_path):
    """Its MASK stays in its config, which would else be taken for a denoiser's."""
    folder = repository(tmp_path / "in", "dream", use_bidirectional_attention=True)
    model = sdtt_jax.load(folder, causal=True)
    export_reference(model, tmp_path / "out")
    assert isinstance(load_network(tmp_path / "out"), CausalModel)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation='gelu_pytorch_tanh'"),
        ({"activation_function": "gelu"}, "activation_function='gelu'"),
        ({"logit_scale": 0.5}, "logit_scale=0.5"),
        ({"logits_soft_cap": 30.0}, "logits_soft_cap=30.0"),
        ({"attn_logit_softcap": 30.0}, "attn_logit_softcap=30.0"),
        ({"attention_scale": 1.0}, "attention_scale=1.0, .* need 0.408"),
        ({"rotary_pct": 0.5}, "rotary_pct=0.5, .* need 1.0"),
        ({"rotary_dim": 2}, "rotary_dim=2, .* need 6"),
        ({"rope_traditional": True}, "rope_traditional=True"),
        ({"use_rope": False}, "use_rope=False"),
        ({"norm_type": "layernorm"}, "norm_type='layernorm'"),
        ({"parallel_attn": True}, "parallel_attn=True"),
        ({"use_parallel_residual": True}, "use_parallel_residual=True"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"rope_ratio": 50}, "rope_ratio=50"),
        ({"embed_scale": 4.0}, "embed_scale=4.0"),
        ({"lm_head_multiplier": 0.1}, "lm_head_multiplier=0.1"),
        ({"layer_sharing": True}, "layer_sharing=True"),
        ({"attn_temperature_tuning": True}, "attn_temperature_tuning=True"),
        ({"norm_after": True}, "norm_after=True"),
        ({"attention_chunk_size": 4}, "attention_chunk_size=4: a token sees no block"),
        ({"no_rope_layer_interval": 2}, "no_rope_layer_interval=2, .* need none"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4}},
            "rope_scaling.rope_type='linear', but also rope_scaling.type='yarn'",
        ),
        # Sizes that make no network are the config's fault, too.
        ({"max_position_embeddings": 0}, r"config\.json: length must be positive, not 0"),
    ],
    ids=str,
)
def test_other_names_of_other_networks_are_refused_by_field(tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        load_network(repository(tmp_path / "m", "llama", **change))


@pytest.mark.parametrize(
    ("theirs", "others", "value"),
    [
        ("rms_norm_eps", ["norm_eps", "layer_norm_eps", "layer_norm_epsilon"], 0.25),
        ("rope_theta", ["rotary_base", "rope_base", "rotary_emb_base"], 5e5),
    ],
)
def test_epsilon_and_base_have_other_names_too(tmp_path, theirs, others, value):
    """What the hub's libraries call them counts more, if it is there."""
    for other in others:
        alone = repository(tmp_path / f"{other}1", "llama", **{theirs: None, other: value})
        config = load_network(alone).config
        assert value in (config.norm_epsilon, config.rotary_base)
        both = load_network(repository(tmp_path / f"{other}2", "llama", **{other: value})).config
        assert (both.norm_epsilon, both.rotary_base) == (1e-3, 500.0)


@pytest.mark.parametrize(
    ("name", "usual"),
    [("ernie4_5", (1e-5, 5e5)), ("helium", (1e-8, 1e5)), ("qwen3", (1e-6, 1e4))],
)
def test_what_a_config_leaves_out_is_what_its_own_library_takes(tmp_path, name, usual):
    """Oracle: the defaults of the config classes of transformers 5.24."""
    folder = repository(tmp_path / "m", name, rms_norm_eps=None, rope_theta=None)
    config = load_network(folder).config
    assert (config.norm_epsilon, config.rotary_base) == usual


def test_the_same_names_may_say_what_is_so(tmp_path):
    """Fields as published configs of the family carry them along."""
    same = {"hidden_activation": "silu", "logit_scale": 1.0, "rotary_pct": 1.0, "rotary_dim": 6}
    same |= {
        "norm_type": "rmsnorm",
        "parallel_attn": False,
        "num_experts": 0,
        "rope_interleaved": False,
        "no_rope_layers": [1, 1],
        "no_rope_layer_interval": 2,
    }
    same |= {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}}
    assert load_network(repository(tmp_path / "m", "llama", **same)).config.rotary_share == 1.0
