"""vocab.json and merges.txt instead of a tokenizer.json, as Dream has them. Oracle: merges and cuts."""

import json

import pytest

import sdtt_jax
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.interchange.hub import ADDED_FILES, BPE_FILES
from sdtt_jax.interchange.load import load_network
from tests.interchange.llama_models import MASK, repository

# "Ġ" is the space. MASK and the end of a text are among the added tokens, with numbers of their own.
TOKENS = {
    "a": 0,
    "b": 1,
    "ab": 2,
    "Ġ": 3,
    "Ġab": 4,
    "1": 5,
    "11": 6,
    "Ã": 7,
    "©": 8,
    "Ã©": 9,
    "e": 10,
}
MERGES = "#version: 0.2\na b\nĠ ab\n1 1\nÃ ©\n"
ADDED = {"12": "<|endoftext|>", "13": "<|mask|>", "15": "<tool>"}


def put(folder, **changed):
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        number: {"content": content, "special": content[1] == "|", **flags}
        for number, content in ADDED.items()
    }
    content = {
        "tokenizer_class": "DreamTokenizer",
        "added_tokens_decoder": added,
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content | changed))
    padding = {f"z{i}": i for i in (11, 14, 16, 17, 18, 19)}
    (folder / "vocab.json").write_text(json.dumps(TOKENS | padding))
    (folder / "merges.txt").write_text(MERGES, "utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    ends = {"bos_token_id": None, "eos_token_id": 12}
    return put(repository(tmp_path / "m", "dream", mask_token_id=None, **ends))


def test_they_make_the_models_tokenizer(folder, tmp_path):
    """Digits are cut one from another, letters composed; ids after MASK are smaller by one here."""
    model = sdtt_jax.load(folder)
    assert model.facts["mask_row"] == MASK
    encode = model.tokenizer.encode
    assert encode("ab ab 11").tolist() == [2, 4, 3, 5, 5]
    assert encode("e\u0301").tolist() == [9]
    assert encode("a<tool>b<|mask|>").tolist() == [0, 14, 1, model.mask_id]
    assert model.tokenizer.decode([2, 4, 9, 12, 0]) == "ab abé\na"
    export_reference(model, tmp_path / "out")
    again = load_network(tmp_path / "out").tokenizer
    assert again.digest == model.tokenizer.digest


def test_of_the_hub_they_are_asked_for_where_there_is_no_other(folder, hub_of):
    asked = hub_of(folder)
    assert load_network("some/repo").tokenizer is not None
    assert asked[-5:] == ["tokenizer_config.json", *BPE_FILES, *ADDED_FILES]


@pytest.mark.parametrize("kind", [None, "OtherTokenizer"])
def test_other_classes_of_tokenizers_are_not_guessed(folder, kind):
    assert load_network(put(folder, tokenizer_class=kind)).tokenizer is None


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_damaged_file_is_one_sentence(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(CheckpointError, match=r"vocab\.json, merges\.txt and .* make no tokenizer"):
        load_network(folder)
    (folder / name).unlink()
    assert load_network(folder).tokenizer is None
