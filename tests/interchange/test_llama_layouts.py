"""Published networks of the Llama family: tiny random models in exactly their layouts.

Oracle: tests/plain_llama.py, and the names, configs and conventions that the models' own repositories have.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdtt_jax
from sdtt_jax.errors import CheckpointError, MismatchError
from sdtt_jax.evaluation.inspection import recognised
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.interchange.tables.families import FAMILIES
from sdtt_jax.model.causal import CausalModel
from tests.interchange.llama_models import (
    IDS,
    MASK,
    MODELS,
    ROWS,
    expected,
    model_of,
    repository,
    tensors,
    write,
)

# Published ids in the order of ours: MASK comes last.
ORDER = [i for i in range(ROWS) if i != MASK] + [MASK]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_recognised_and_its_logits_are_those_of_the_plain_twin(tmp_path, name):
    case = MODELS[name]
    model = sdtt_jax.load(repository(tmp_path / name, name), **case.given)
    assert isinstance(model, CausalModel) == case.causal
    order = np.arange(ROWS) if case.causal else np.array(ORDER)
    if not case.causal:
        assert (model.config.shift, model.config.causal) == (case.shift, False)
        assert (model.facts["mask_row"], model.mask_id) == (MASK, ROWS - 1)
        assert model.config.length == 1024
        assert model.first_token is None
    ours = np.argsort(order)[IDS].astype(np.int32)
    for row, ids in zip(model.logits(ours), IDS, strict=True):
        np.testing.assert_allclose(row, expected(name, ids)[:, order], atol=1e-4)


def test_every_family_that_is_known_is_among_them():
    assert {case.config["model_type"].lower() for case in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", ["qwen2", "dream", "llada"])
@pytest.mark.parametrize("norms", [ml_dtypes.bfloat16, np.float32], ids=str)
def test_what_was_read_goes_out_bit_for_bit(tmp_path, name, norms):
    """Oracle: what came in. Each tensor has its own dtype, and a copy of a tied head is written, too."""
    config, _, weights = model_of(name)
    named = tensors(name, weights)
    if name == "qwen2":
        named["lm_head.weight"] = named["model.embed_tokens.weight"].copy()
        config = config | {"tie_word_embeddings": True}
    named = {k: v.astype(norms if v.ndim == 1 else ml_dtypes.bfloat16) for k, v in named.items()}
    shards = 1 if norms == np.float32 else 2
    model = sdtt_jax.load(write(tmp_path / "in", config, named, shards=shards))
    assert recognised(model)["stored_as"] == ("BF16, F32" if norms == np.float32 else "BF16")
    export_reference(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert set(again) == set(named)
    for tensor, array in named.items():
        assert (again[tensor].dtype, again[tensor].tobytes()) == (array.dtype, array.tobytes())


AS_DENOISER = {"causal": False, "shift": True, "mask_id": MASK}


@pytest.mark.parametrize(
    ("name", "given", "changed"),
    [
        ("diffullama", AS_DENOISER, ["length", "mask_token_id", "model_type", "shift"]),
        ("dream", {"shift": False, "mask_id": 4}, ["length", "mask_token_id", "shift"]),
        ("a2d-qwen3", {"length": 2048}, ["length", "shift"]),
        ("smollm2", {"length": 9}, ["length"]),
        ("dream", {"causal": True}, ["length", "model_type"]),
        ("llada", {"causal": True}, ["length", "model_type"]),
        ("helium", AS_DENOISER, ["length", "mask_token_id", "model_type", "rotary_pairs", "shift"]),
    ],
    ids=str,
)
def test_what_the_user_said_of_it_goes_out_with_it(tmp_path, name, given, changed):
    """Oracle: the model that was exported, which comes back from its folder alone."""
    model = sdtt_jax.load(repository(tmp_path / "in", name), **given)
    export_reference(model, tmp_path / "out")
    back = sdtt_jax.load(tmp_path / "out")
    assert (type(back), back.config) == (type(model), model.config)
    assert back.facts["mask_row"] == model.facts["mask_row"]
    before, after = model.facts["published_config"], back.facts["published_config"]
    assert sorted(field for field in after if after[field] != before.get(field)) == changed


def test_what_an_unknown_config_was_read_as_goes_out_with_it(tmp_path):
    folder = repository(tmp_path / "in", "llama", model_type="llama9", sliding_window=64)
    model = sdtt_jax.load(folder, causal=True, length=64)
    export_reference(model, tmp_path / "out")
    assert sdtt_jax.load(tmp_path / "out").config == model.config


def test_mask_that_its_tokenizers_config_names_goes_out_with_it(tmp_path):
    folder = repository(tmp_path / "in", "a2d-llama", mask_token_id=None)
    names = {"mask_token": "m", "added_tokens_decoder": {str(MASK): {"content": "m"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    export_reference(sdtt_jax.load(folder), tmp_path / "out")
    assert sdtt_jax.load(tmp_path / "out").facts["mask_row"] == MASK


def test_a_config_that_was_edited_makes_another_model(tmp_path):
    """Results are stored under the fingerprint, which also covers what the config says of the parameters."""
    folder = repository(tmp_path, "diffullama")
    before = sdtt_jax.load(folder, **MODELS["diffullama"].given).fingerprint
    assert sdtt_jax.load(folder, **MODELS["diffullama"].given).fingerprint == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1234.0}))
    after = sdtt_jax.load(folder, **MODELS["diffullama"].given).fingerprint
    assert (after["digest"], after != before) == (before["digest"], True)


def test_a_config_without_epsilon_means_the_hubs(tmp_path):
    folder = repository(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    del config["rms_norm_eps"]
    (folder / "config.json").write_text(json.dumps(config))
    assert sdtt_jax.load(folder).config.norm_epsilon == 1e-6


def test_several_files_with_an_index_are_one_model(tmp_path):
    one = sdtt_jax.load(repository(tmp_path / "one", "qwen3"))
    several = repository(tmp_path / "several", "qwen3", shards=3)
    for path in (several, several / "model.safetensors.index.json"):
        np.testing.assert_array_equal(sdtt_jax.load(path).logits(IDS), one.logits(IDS))
    (several / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors"):
        sdtt_jax.load(several)


def test_a_tied_head_may_be_written_out_and_must_then_be_the_embedding(tmp_path):
    config, _, weights = model_of("smollm2")
    named = tensors("smollm2", weights)
    config = config | {"tie_word_embeddings": True}
    copied = write(tmp_path / "a", config, named | {"lm_head.weight": weights["embed"].copy()})
    assert "head" not in sdtt_jax.load(copied).params
    other = write(tmp_path / "b", config, named | {"lm_head.weight": weights["embed"] + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        sdtt_jax.load(other)


class TestWhatTheUserSays:
    def test_it_counts_more_than_the_config(self, tmp_path):
        folder = repository(tmp_path / "m", "dream")
        plain = sdtt_jax.load(folder, shift=False, mask_id=4, length=9)
        assert (plain.config.shift, plain.config.length) == (False, 9)
        assert plain.facts["mask_row"] == 4
        assert isinstance(sdtt_jax.load(folder, causal=True), CausalModel)

    @pytest.mark.parametrize("name", ["a2d-llama", "a2d-qwen2"])
    def test_a_denoiser_whose_config_says_no_mask_asks_for_it(self, tmp_path, name):
        folder = repository(tmp_path / "m", name, mask_token_id=None)
        with pytest.raises(CheckpointError, match=r"which token is MASK.*pass mask_id"):
            sdtt_jax.load(folder)
        assert sdtt_jax.load(folder, mask_id=MASK).facts["mask_row"] == MASK

    @pytest.mark.parametrize("token", ["<|mask|>", {"content": "<|mask|>", "special": True}])
    def test_its_tokenizer_may_name_the_mask(self, tmp_path, token):
        folder = repository(tmp_path / "m", "a2d-qwen2", mask_token_id=None)
        added = {"3": {"content": "<|end|>"}, str(MASK): {"content": "<|mask|>"}}
        names = {"mask_token": token, "added_tokens_decoder": added}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        assert sdtt_jax.load(folder).facts["mask_row"] == MASK
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
        with pytest.raises(CheckpointError, match=r"nor does tokenizer_config.json .*pass mask_id"):
            sdtt_jax.load(folder)

    def test_of_the_hub_too_where_its_config_says_nothing(self, tmp_path, hub_of):
        """It is downloaded before the config is read."""
        folder = repository(tmp_path / "m", "a2d-qwen2", mask_token_id=None)
        names = {"mask_token": "#", "added_tokens_decoder": {str(MASK): {"content": "#"}}}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        asked = hub_of(folder)
        assert sdtt_jax.load("some/repo").facts["mask_row"] == MASK
        assert asked[1:4] == ["config.json", "tokenizer.json", "tokenizer_config.json"]

    def test_a_config_that_says_nothing_of_a_denoiser_is_a_causal_models(self, tmp_path):
        folder = repository(tmp_path / "m", "diffullama")
        assert isinstance(sdtt_jax.load(folder), CausalModel)
        with pytest.raises(CheckpointError, match="pass mask_id"):
            sdtt_jax.load(folder, causal=False, shift=True)

    def test_a_causal_model_becomes_a_denoiser_where_all_is_said(self, tmp_path):
        folder = repository(tmp_path / "m", "qwen3")
        model = sdtt_jax.load(folder, causal=False, mask_id=MASK, shift=True)
        assert model.config.shift

    @pytest.mark.parametrize(
        ("change", "given", "said"),
        [
            (
                {"model_type": "gptj"},
                {},
                "model_type='gptj'.*pass causal=True for .*, or causal=False",
            ),
            ({}, {"causal": False}, r"which token is MASK.*pass mask_id"),
            (
                {},
                {"causal": False, "mask_id": ROWS},
                f"token {ROWS}, but the embedding has only {ROWS}",
            ),
            ({"model_type": "gptj"}, {"mask_id": 1}, "pass shift=False for"),
            (
                {},
                {"mask_id": MASK, "shift": True},
                "only a denoiser has shift and mask_id, but",
            ),
        ],
    )
    def test_what_is_not_known_is_asked_for(self, tmp_path, change, given, said):
        folder = repository(tmp_path / "m", "qwen3", **change)
        with pytest.raises(CheckpointError, match=said):
            sdtt_jax.load(folder, **given)


def test_what_is_said_of_another_network_is_refused(golden):
    with pytest.raises(CheckpointError, match=r"layout 'gpt2'.*leave out causal, length"):
        sdtt_jax.load(golden / "gpt2_tiny", causal=False, length=3)
    with pytest.raises(MismatchError, match="shift is for published networks of the Llama fam"):
        sdtt_jax.load(golden, shift=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"vocab_size": 21}, "vocab_size=21"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide"),
        ({"num_hidden_layers": 3}, "11 tensors are missing: model.layers.2"),
        ({"num_hidden_layers": 1}, "11 tensors are not part of this model: model.layers.1"),
        ({"num_attention_heads": None}, "'num_attention_heads' is missing"),
        ({"rope_theta": "big"}, "rope_theta='big'; it must be a number"),
        ({"hidden_size": 17}, "hidden_size=17, but the tensors .* need 16"),
        ({"intermediate_size": 25}, "intermediate_size=25, but the tensors .* need 24"),
        # Neither a list of so many names nor an array of that size is made: neither fits into memory.
        ({"num_hidden_layers": 10**9}, "holds 24 tensors, too few for the 1000000"),
        ({"head_dim": 10**9}, r"q_proj\.weight has shape \[24, 16\], but this model needs"),
        ({"head_dim": 10**20}, r"config\.json: head_dim must be 4294967295 or less, not 1000"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"embedding_multiplier": 12.0}, r"embedding_multiplier=12\.0"),
        ({"residual_multiplier": 0.22}, r"residual_multiplier=0\.22"),
        ({"logits_scaling": 8.0}, r"logits_scaling=8\.0"),
        ({"attention_multiplier": 0.0156}, r"attention_multiplier=0\.0156, .* need 0\.408"),
        ({"scale_emb": 12}, "scale_emb=12"),
        ({"scale_depth": 1.4}, r"scale_depth=1\.4"),
        ({"dim_model_base": 256}, "dim_model_base=256"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers=\[1, 0\]"),
        ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping=50\.0"),
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping=30\.0"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar=256"),
        (
            {"model_type": "mistral", "use_sliding_window": None, "sliding_window": 4095},
            "sliding_window=4095, which is shorter than its texts of 4096 tokens",
        ),
        (
            {"model_type": "mistral", "use_sliding_window": None, "max_position_embeddings": 4097},
            "sliding_window=4096, which is shorter than its texts of 4097 tokens",
        ),
    ],
    ids=str,
)
def test_configs_of_other_networks_are_refused_by_field(tmp_path, change, said):
    """Also where the user says what kind an unknown network is: that says nothing of such fields."""
    given = {"causal": True} if "model_type" in change else {}
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(repository(tmp_path / "m", "qwen3", **change), **given)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"embedding_multiplier": 1.0, "residual_multiplier": 1, "logits_scaling": 1.0}, {}),
        ({"scale_emb": 1, "attention_multiplier": 6**-0.5, "no_rope_layers": [1, 1]}, {}),
        (dict.fromkeys(("scale_depth", "dim_model_base", "final_logit_softcapping")), {}),
        ({"model_type": "mistral", "sliding_window": None}, {}),
        ({"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 4097}, {}),
        ({"model_type": "mistral", "sliding_window": 4096}, {}),
        ({"model_type": "mistral", "sliding_window": 8}, {"length": 8}),
        ({"model_type": "mistral9", "sliding_window": 8}, {"length": 8}),
        ({"model_type": "qwen9", "sliding_window": 8, "use_sliding_window": False}, {}),
        ({"model_type": "qwen2", "sliding_window": 8}, {}),
    ],
    ids=str,
)
def test_such_fields_may_say_that_nothing_changes(tmp_path, change, given):
    """Oracle: the plain twin, which knows none of them."""
    model = sdtt_jax.load(repository(tmp_path / "m", "llama", **change), causal=True, **given)
    np.testing.assert_allclose(model.logits(IDS)[0], expected("llama", IDS[0]), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale_logits": True}, "scale_logits=True"),
        ({"input_emb_norm": True}, "input_emb_norm=True"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0"),
    ],
    ids=str,
)
def test_options_of_olmo_that_change_the_network_are_refused_by_field(tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(repository(tmp_path / "m", "llada", **change))
    unsaid = dict.fromkeys(change, None if "clip_qkv" in change else False)
    assert sdtt_jax.load(repository(tmp_path / "n", "llada", **unsaid)).mask_id > 0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "qwen3_moe"},
            "model_type='qwen3_moe', which is not known \\(known are llama, qwen2",
        ),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantization_config.bits=4"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "says hidden_act='gelu'"),
    ],
    ids=["experts", "quantised", "activation"],
)
def test_another_network_is_named_by_its_config_before_its_tensors(tmp_path, config, said):
    """GPTQ's, AWQ's and experts' tensors have other names, so the usual ones would be reported as missing."""
    whole, _, weights = model_of("llama")
    named = {n: x for n, x in tensors("llama", weights).items() if ".mlp." not in n}
    folder = write(tmp_path / "m", whole | config, named)
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(folder)


def test_names_of_no_layout_are_said_with_the_config(tmp_path):
    folder = tmp_path / "m"
    named = {"backbone.layers.0.mixer.A_log": np.ones(3, np.float32)}
    folder = write(folder, {"model_type": "mamba"}, named)
    said = r"no model\.embed_tokens\.weight .*: the first of its 1 tensors is backbone\.layers"
    with pytest.raises(CheckpointError, match=f"{said}.*, and its config says model_type='mamba'"):
        sdtt_jax.load(folder)


def test_a_mask_that_is_no_whole_number_is_refused(tmp_path):
    """2.5 used to be read as token 2."""
    with pytest.raises(CheckpointError, match=r"mask_token_id=2\.5; it must be the number of a"):
        sdtt_jax.load(repository(tmp_path / "m", "dream", mask_token_id=2.5))


def test_without_its_config_it_is_asked_for(tmp_path):
    folder = repository(tmp_path / "m", "qwen3")
    (folder / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"its number of heads is in its config\.json: put that"
    ):
        sdtt_jax.load(folder)


def test_a_tensor_in_two_files_is_named(tmp_path):
    """The first used to be taken, whatever the index said."""
    folder = repository(tmp_path / "m", "llama", shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    again = {**load_file(second), "model.norm.weight": np.ones(16, np.float32)}
    save_file({**load_file(first), "model.norm.weight": np.ones(16, np.float32)}, first)
    save_file(again, second)
    said = rf"model\.norm\.weight is in two of the files .*, {first.name} and {second.name};"
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(folder)
