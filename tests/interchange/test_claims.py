"""What a config says about tensors whose names related models share. Oracle: the configs they publish."""

import json
import shutil

import pytest
from safetensors.numpy import load_file

import sdtt_jax
from sdtt_jax.errors import CheckpointError
from sdtt_jax.evaluation.inspection import recognised as recognised_as
from sdtt_jax.interchange.claims import LENGTHS, published_schedule
from sdtt_jax.interchange.layouts import recognised
from sdtt_jax.interchange.renaming import Stored
from sdtt_jax.interchange.tables.reference import CAUSAL, DENOISER

# The config of the golden teacher: 97 rows with MASK.
HUB = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "hidden_dim": 64,
    "n_blocks": 2,
    "n_heads": 4,
    "cond_dim": 32,
    "model_length": 32,
    "vocab_size": 97,
    "dropout": 0.1,
    "time_conditioning": False,
    "torch_dtype": "float32",
}
SDTT = {
    "model": {"type": "ddit-orig", "hidden_size": 64, "n_blocks": 2, "length": 32, "cond_dim": 32},
    "parameterization": {"name": "multi-round-sdtt", "sampling_mode": "ancestral"},
    "training": {"sampling_eps": 1e-5},
    "data": {"block_size": 4, "vocab_size": 5},
    "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
    "T": 1024,
    "time_conditioning": False,
}
MDLM = {
    "diffusion": "absorbing_state",
    "backbone": "dit",
    "parameterization": "subs",
    "time_conditioning": False,
    "model": {"name": "small", "type": "ddit", "length": 32, "scale_by_sigma": True},
}


@pytest.fixture(scope="module")
def teacher(golden):
    return load_file(golden / "reference_tiny" / "teacher_hub.safetensors")


def read(tensors, content, layout=DENOISER):
    return recognised(layout, tensors, Stored(content), "m.safetensors").config


@pytest.mark.parametrize("content", [{}, HUB, SDTT, MDLM, {"config": MDLM}], ids=len)
def test_what_the_family_publishes_is_read(teacher, content):
    assert read(teacher, content).length in (32, 1024)


OTHERS = {
    "SEDD": ({"graph": {"type": "absorb", "report_all": False}}, "graph.type='absorb'"),
    "BD3-LM": ({"block_size": 4}, "block_size=4"),
    "its name": ({"model_type": "bd3lm"}, "model_type='bd3lm'"),
    "its class": ({"architectures": ["BD3LM"]}, r"architectures=\['BD3LM'\]"),
    "its attention": ({"cross_attn": True}, "cross_attn=True"),
    "one class of two": ({"architectures": ["MDLM", "BertForMaskedLM"]}, "architectures="),
    "MASK elsewhere": ({"mask_index": 103}, "mask_index=103"),
    "MASK elsewhere, the hub's word": ({"mask_token_id": 0}, "mask_token_id=0"),
    "another vocabulary": ({"vocab_size": 30522}, "vocab_size=30522"),
    "no length": ({"model_length": None}, "model_length=None"),
    "length as text": ({"length": "32"}, "length='32'"),
    "length 0": ({"model": {"length": 0}}, "length=0"),
    # The tensors say nothing of these two, so they are not blamed.
    "two lengths": (
        {"length": 32, "config": {"model": {"length": 64}}},
        "length=32, but also config.model.length=64: correct the one that is wrong",
    ),
    "conditioned or not": (
        {"time_conditioning": True, "config": {"time_conditioning": False}},
        "time_conditioning=True, but also config.time_conditioning=False",
    ),
    "two lengths by two names": ({"length": 32, "n_ctx": 64}, "length=32, but also n_ctx=64"),
    "time as text": ({"time_conditioning": "False"}, "time_conditioning='False'"),
    "D3PM": ({"parameterization": "d3pm"}, "parameterization='d3pm'"),
    "score": ({"parameterization": {"name": "sedd"}}, "parameterization.name='sedd'"),
    "causal": ({"parameterization": "ar"}, "parameterization='ar'"),
    "causal attention": ({"algo": {"causal_attention": True}}, "causal_attention=True"),
    "uniform": ({"diffusion": "uniform"}, "diffusion='uniform'"),
    "DUO": ({"algo": {"name": "duo_base"}}, "algo.name='duo_base'"),
    "DUO by its mean": ({"algo": {"parameterization": "mean"}}, "parameterization='mean'"),
    "UDLM": ({"algo": {"name": "udlm"}}, "algo.name='udlm'"),
    "UDLM by its parameters": ({"parameterization": "udlm"}, "parameterization='udlm'"),
    "XDLM without MASK": (
        {"algo": {"name": "xdlm", "k1": 1.0}},
        "that a share 1.0 of its noise",
    ),
    "XDLM without MASK, another word": ({"k_uniform": 1}, "that a share 1.0 of its noise"),
    "more than all": ({"algo": {"k1": 1.5}}, "that a share 1.5 of its noise"),
    "a share as text": ({"algo": {"k1": "0.1"}}, "k1='0.1'"),
    "an IDLM of DUO": ({"model_type": "idlm", "var_min": True}, "var_min=True"),
    "an IDLM of uniform noise": ({"model_type": "idlm", "diffusion": "uniform"}, "diffusion='unif"),
    "Mamba": ({"backbone": "dimamba"}, "backbone='dimamba'"),
    "a nested backbone": ({"backbone": {"hidden_size": 128}}, "hidden_size=128"),
    "size as text": ({"n_heads": "8"}, "n_heads='8'"),
    "tied head": ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
    "activation": ({"model": {"hidden_act": "silu"}}, "hidden_act='silu'"),
    "rotary base": ({"rope_theta": 500000.0}, "rope_theta=500000.0"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config.bits=4"),
    "no modulation": ({"model": {"adaLN": False}}, "adaLN=False"),
    "GIDD": ({"model": {"diffusion_process": "gidd"}}, "diffusion_process='gidd'"),
    "GIDD by its noise": ({"p_uniform": 0.2}, "p_uniform=0.2"),
    "SEDD by its class": ({"_class_name": "SEDD"}, "_class_name='SEDD'"),
    "SEDD by its loss": ({"loss_type": "sedd"}, "loss_type='sedd'"),
    "uniform, another word": ({"forward_process": "uniform"}, "forward_process='uniform'"),
    "causal, the hub's word": ({"is_causal": True}, "is_causal=True"),
    "scaled rotations": (
        {"rope_scaling": {"type": "linear", "factor": 2}},
        "rope_scaling.type='lin",
    ),
    "no rotations": ({"rope": False}, "rope=False"),
    "learnt positions": ({"position_embedding_type": "absolute"}, "position_embedding_type='abs"),
    "other heads": ({"num_attention_heads": 99}, "num_attention_heads=99"),
    "other layers": ({"num_hidden_layers": 99}, "num_hidden_layers=99"),
    "MASK elsewhere, short": ({"mask_idx": 3}, "mask_idx=3"),
    "MASK elsewhere, long": ({"mask_token_index": 3}, "mask_token_index=3"),
    "scaled logits": ({"logit_scale": 2.0}, "logit_scale=2.0"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_is_not_is_refused_by_field_and_value(teacher, name):
    content, said = OTHERS[name]
    with pytest.raises(CheckpointError, match=f"config.json says {said}"):
        read(teacher, content)


@pytest.mark.parametrize(
    "said",
    [
        *[{name: 16} for name in LENGTHS if "." not in name],
        {"model": {"max_length": 16}},
        {"max_length": 20, "config": {"model": {"max_length": 16}}},
    ],
    ids=str,
)
def test_a_length_is_read_by_all_its_names(teacher, said):
    """The hub's `max_length` outside the section is the length of generated texts."""
    assert read(teacher, said).length == 16


def test_the_other_names_may_say_what_is_so(teacher):
    content = {"num_attention_heads": 4, "num_hidden_layers": 2, "mask_idx": 96, "p_uniform": 0}
    more = {
        "is_causal": False,
        "diffusion_process": "mdlm",
        "rope_scaling": None,
        "loss_type": "elbo",
    }
    assert read(teacher, content | more).num_layers == 2


# The fields that classes of networks whose tensors have MDLM's names write into config.json, with the sizes
# of the golden teacher.
SIZES = {
    name: HUB[name] for name in ("hidden_dim", "n_blocks", "n_heads", "cond_dim", "model_length")
}
DUO = {**SIZES, "model_type": "duo", "vocab_size": 97, "causal": False, "var_min": True}
REPOSITORIES = {
    "mdlm-owt": (HUB, ""),
    # IDLM's program runs a student as a network of its teacher's class, whose config it is taken to have.
    "idlm-mdlm": (HUB | {"tie_word_embeddings": False}, ""),
    "idlm-duo": (DUO, "model_type='duo'"),
    "duo": (DUO, "model_type='duo'"),
    "udlm-lm1b": (
        {**SIZES, "model_type": "udlm", "vocab_size": 97, "time_conditioning": True, "cfg": False},
        "model_type='udlm'",
    ),
    # Its noise is that of its tensors' layout, since nothing says otherwise.
    "an IDLM by name": (HUB | {"model_type": "idlm", "architectures": ["IDLM"]}, ""),
    # The names of the two kinds in the programs of Duo, IDLM and XDLM.
    "mdlm by its algorithm": (
        {"algo": {"name": "mdlm", "backbone": "hf_dit", "parameterization": "subs", "k1": 0}},
        "",
    ),
    # At MASK it predicts as MDLM does; nothing is predicted elsewhere.
    "xdlm by its algorithm": (
        {"algo": {"name": "xdlm", "backbone": "dit", "parameterization": "align", "k1": 0.1}},
        "",
    ),
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_files_with_the_names_of_mdlm_load_if_they_mask_and_are_else_refused(
    golden, tmp_path, name
):
    content, said = REPOSITORIES[name]
    shutil.copy(golden / "reference_tiny/teacher_hub.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    if not said:
        model = sdtt_jax.load(tmp_path)
        assert (model.facts["layout"], model.mask_id) == (DENOISER.name, 96)
        share = content.get("algo", {}).get("k1", 0)
        assert recognised_as(model)["uniform_share"] == share
        return
    with pytest.raises(CheckpointError) as caught:
        sdtt_jax.load(tmp_path)
    sentence = str(caught.value)
    assert f"config.json says {said}, but the tensors of" in sentence
    assert sentence.endswith(".")
    assert ". " not in sentence
    assert "\n" not in sentence


def test_a_causal_model_is_not_a_denoiser_that_lost_its_modulation(golden):
    tensors = load_file(golden / "reference_tiny" / "ar_hub.safetensors")
    assert read(tensors, {"parameterization": "ar", "length": 32}, CAUSAL).length == 32
    with pytest.raises(CheckpointError, match="says parameterization='subs'"):
        read(tensors, {"parameterization": "subs"}, CAUSAL)


def test_the_schedule_is_the_configs():
    """Otherwise a network trained with another schedule would be told wrong times."""
    linear = {"type": "linear", "sigma_min": 0.1, "sigma_max": 5.0}
    assert published_schedule(Stored({"config": {"noise": linear}})).sigma_max == 5.0
    assert published_schedule(Stored({"noise": {"type": "cosinesquared"}})).kind == "cosine-squared"
    for content in ({}, SDTT, {"noise": {"type": None}}):
        assert published_schedule(Stored(content)).kind == "log-linear"
    for noise in ({"type": "polynomial"}, "sine", linear | {"sigma_max": "much"}):
        with pytest.raises(CheckpointError, match=r"config.json.*noise"):
            published_schedule(Stored({"noise": noise}))
    for name in ("schedule", "name", "kind"):
        assert published_schedule(Stored({"noise": {name: "cosine"}})).kind == "cosine"
    for noise in ("cosine", {"type": "Cosine"}):
        assert published_schedule(Stored({"noise_schedule": noise})).kind == "cosine"
    with pytest.raises(CheckpointError, match=r"noise=\{'eps': 0.001\}, without a type"):
        published_schedule(Stored({"noise": {"eps": 1e-3}}))
    two = {"noise": {"type": "loglinear"}, "config": {"noise_schedule": "cosine"}}
    with pytest.raises(CheckpointError, match=r"noise\.type='log-linear', but also noise_s"):
        published_schedule(Stored(two))


@pytest.mark.parametrize("field", ["sequences", "tokenizer_normalize"])
@pytest.mark.parametrize("kind", ["rows", True, ["packed"], None])
def test_an_unknown_kind_of_texts_is_refused(golden, tmp_path, kind, field):
    """Oracle: the kinds that runs have. A list for a normalisation was a TypeError."""
    shutil.copy(golden / "reference_tiny/teacher_hub.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HUB | {field: kind}))
    # The fault is the config's, which is the file to mend.
    said = rf"/config\.json says {field}=.* must be one of (packed, documents|none, )"
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(tmp_path)
