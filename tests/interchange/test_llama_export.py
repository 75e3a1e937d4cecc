"""What goes out in the hub's layout. Oracles: the files that came in; how transformers 5.24 reads configs."""

import dataclasses
import json
import os
import sys

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import sdtt_jax
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.errors import CheckpointError, MismatchError
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.config import LlamaConfig, LlamaDenoiserConfig
from sdtt_jax.networks.kinds import kind_of, network_of
from sdtt_jax.networks.llama import LlamaDenoiser
from tests.interchange.llama_models import MASK, ROWS, repository, vocabulary
from tests.model.runs import random_params

BESIDE = {
    "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "a"}',
    "special_tokens_map.json": b'{"pad_token": "a"}',
    "tokenizer.model": b"pieces",
    "added_tokens.json": b'{"a": 0}',
    "chat_template.jinja": b"{{ messages[0].content }}",
    "generation_config.json": b'{"eos_token_id": 2}',
}


@pytest.fixture
def published(tmp_path):
    words = {"a": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, ROWS - 1)}
    folder = repository(tmp_path / "in", "llama")
    (folder / "tokenizer.json").write_bytes(vocabulary(words).to_str().encode())
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    return folder


def written(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_lies_beside_a_published_model_goes_out_with_it(published, tmp_path, monkeypatch):
    """A chat's template and the token that ends a text were lost. Also where the working folder changes."""
    monkeypatch.chdir(tmp_path)
    model = sdtt_jax.load("in")
    monkeypatch.chdir("/")
    export_reference(model, tmp_path / "out")
    unchanged = {*BESIDE, "tokenizer.json"}
    came, went = written(published), written(tmp_path / "out")
    assert {name: went[name] for name in unchanged} == {name: came[name] for name in unchanged}
    assert went.keys() == came.keys()


def test_what_a_repository_of_the_hub_has_beside_goes_out_too(published, tmp_path, hub_of):
    """Only the export asks for it: a hub that cannot be reached costs 23 seconds for each file."""
    asked = hub_of(published)
    model = sdtt_jax.load("owner/name@main")
    assert "chat_template.jinja" not in asked
    export_reference(model, tmp_path / "out")
    assert written(tmp_path / "out").keys() == written(published).keys()


def test_a_hub_that_is_not_reached_is_asked_for_one_of_them(published, tmp_path, monkeypatch):
    """Each lost attempt takes 23 seconds. Oracle: what the cache of the hub's library has."""
    waited = []

    def download(_repo, file, local_files_only=False, **_):
        if (published / file).is_file():
            return str(published / file)
        waited.extend([] if local_files_only else [file])
        raise LocalEntryNotFoundError(file)

    for name in ("tokenizer.model", "added_tokens.json", "generation_config.json"):
        (published / name).unlink()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    export_reference(sdtt_jax.load("owner/name@main"), tmp_path / "out")
    assert waited == ["vocab.json"]
    assert written(tmp_path / "out").keys() == written(published).keys()


def test_without_such_files_the_tokens_that_begin_and_end_texts_are_named(published, tmp_path):
    """As of a run's model. Oracle: the words of the vocabulary, and the tokenizer that went out."""
    export_orbax(sdtt_jax.load(published), tmp_path / "orbax")
    model = sdtt_jax.load(tmp_path / "orbax")
    export_reference(model, tmp_path / "out")
    names = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (names["bos_token"], names["eos_token"]) == ("<s>", "</s>")
    assert sdtt_jax.load(tmp_path / "out").text_tokenizer.digest == model.text_tokenizer.digest


def test_one_that_is_killed_between_its_last_renames_is_no_mixture(tmp_path, monkeypatch):
    """The older tensors had the new config, and were loaded as a denoiser; what `kill -9` left stayed.

    Oracle: the new one, repeated.
    """
    old, new = (sdtt_jax.load(repository(tmp_path / name, name)) for name in ("llama", "a2d-llama"))
    out, replace = tmp_path / "out", os.replace
    export_reference(old, out)
    with monkeypatch.context() as patch:
        last = out / "model.safetensors"
        patch.setattr("os.replace", lambda a, b: sys.exit(9) if b == last else replace(a, b))
        with pytest.raises(SystemExit):
            export_reference(new, out)
    with pytest.raises(CheckpointError, match="no finished model"):
        sdtt_jax.load(out)
    left = (
        "..model.safetensors.0a1b2c3d.4e5f6071",
        ".model.safetensors.0a1b2c3d",
        ".config.json.mine",
    )
    for name in left:
        (out / name).touch()
    export_reference(new, out)
    assert sdtt_jax.load(out).config == new.config
    assert [path.name for path in out.glob(".*")] == [".config.json.mine"]


def test_a_student_of_a_causal_model_keeps_its_tokenizer(published, tmp_path):
    """Its texts were tokenised again for that model as their judge. Oracle: the tokenizer that went out."""
    causal = sdtt_jax.load(published)
    network = LlamaDenoiser(LlamaDenoiserConfig(**vars(causal.config) | {"length": 8}))
    model = Model(
        denoiser=network,
        params=random_params(network, 0),
        tokenizer=causal.tokenizer,
        schedule=make_schedule(),
        facts={"path": "ours", "kind": kind_of(network), "schedule": causal.facts["schedule"]},
    )
    export_reference(model, tmp_path / "out")
    back = sdtt_jax.load(tmp_path / "out")
    assert back.text_tokenizer.digest == causal.text_tokenizer.digest
    assert back.mask_id == back.text_tokenizer.vocab_size == ROWS
    export_reference(back, tmp_path / "again")
    assert written(tmp_path / "again") == written(tmp_path / "out")


@pytest.mark.parametrize("special", [True, False])
def test_mask_is_named_unless_it_is_a_word(special, tmp_path):
    """As of a run's student: dLLM's sampler asks the tokenizer for it. Oracle: the vocabulary's name."""
    words = {"a": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, ROWS - 1)}
    name = "<mask>" if special else f"w{MASK}"
    words = {name if i == MASK else word: i for word, i in words.items()}
    folder = repository(tmp_path / "in", "a2d-llama", bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.json").write_bytes(vocabulary(words).to_str().encode())
    export_orbax(sdtt_jax.load(folder), tmp_path / "orbax")
    export_reference(sdtt_jax.load(tmp_path / "orbax"), tmp_path / "out")
    names = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert names.get("mask_token") == (name if special else None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"qk_norm": True, "qkv_bias": True}, "qkv_bias: True -> False"),
        ({"rotary_share": 0.5}, "rotary_share: 0.5 -> 1.0"),
        ({"qk_norm": True}, None),
        ({"qkv_bias": True}, None),
    ],
    ids=str,
)
def test_what_other_libraries_would_read_as_another_network_is_refused(fields, said, tmp_path):
    """transformers read them without a word: logits were off by as much as they are large."""
    config = LlamaConfig(12, 8, num_layers=2, embed_dim=16, num_heads=2, **fields)
    network = network_of(config)
    facts = {"path": "ours", "kind": kind_of(network)}
    model = CausalModel(
        network=network, params=random_params(network, 0), tokenizer=None, facts=facts
    )
    if said is None:
        export_reference(model, tmp_path / "out")
        back = sdtt_jax.load(tmp_path / "out").config
        assert back == dataclasses.replace(config, mlp_ratio=back.mlp_ratio)
    else:
        with pytest.raises(MismatchError, match=f"export it as orbax:\n  {said}"):
            export_reference(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
