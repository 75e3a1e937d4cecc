"""The model card. Oracles: the model, the results that are put in, and the files that the card describes."""

import dataclasses
import json

import pytest

import sdtt_jax
from sdtt_jax.interchange.card import model_card
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.kinds import COUPLED, kind_of
from tests.interchange.llama_models import MASK, repository


def test_the_card_says_what_was_measured(model):
    results = {
        "teacher": {"steps": {"8": {"gen_ppl": 16.6, "entropy": 2.6}}},
        "rounds": [
            {
                "round": 1,
                "steps": {
                    "8": {"gen_ppl": 14.25, "entropy": 2.5},
                    "4": {"entropy": 2.4},
                    "2": {"gen_ppl": None, "entropy": float("nan")},
                },
            }
        ],
    }
    facts = model.facts | {"stage": "distill", "round": 1}
    card = model_card(dataclasses.replace(model, facts=facts), "orbax", results)
    assert "| 8 | 14.25 | 2.500 |" in card
    assert "| 4 | – | 2.400 |" in card, "no text could be scored"
    assert "| 2 | – | – |" in card
    assert "16.6" not in card
    assert "| round | 1 |" in card


@pytest.mark.parametrize("stage", ["judge", "teacher", "distill"])
def test_the_card_of_what_was_not_measured_has_no_measurements(model, stage):
    trained = dataclasses.replace(model, facts=model.facts | {"stage": stage})
    for results in ({"timing": {}}, {"baseline_ar": None, "teacher": None, "rounds": None}):
        assert "perplexity" not in model_card(trained, "orbax", results)


@pytest.mark.parametrize(("kind", "said"), [("full", True), ("masks", False)])
def test_the_card_of_a_noise_coupled_student_says_how_to_sample_it(model, kind, said):
    """Not where the noise draws only masks: tokens are then drawn as of any denoiser."""
    config = CoupledConfig.of(model.config, NoiseConfig(kind))
    coupled = dataclasses.replace(
        model, denoiser=CoupledDenoiser(config), facts=model.facts | {"kind": COUPLED}
    )
    card = model_card(coupled, "orbax", None)
    assert ('`mode="first-hitting"`' in card) is said


def test_the_card_says_which_network_it_is(model):
    assert "| network | DiT, " in model_card(model, "orbax", None)
    causal = CausalConfig(5, 8, num_layers=1, embed_dim=16, num_heads=2)
    network, facts = CausalNetwork(causal), {"path": "x", "kind": kind_of(CausalNetwork(causal))}
    judge = CausalModel(network=network, params={}, tokenizer=None, facts=facts)
    card = model_card(judge, "orbax", None)
    assert "| network | transformer, 1 layers of 16, 2 heads |" in card
    assert "| sequences | 8 tokens of 5 |" in card


@pytest.mark.parametrize("name", ["llada", "dream", "a2d-qwen3"])
def test_the_card_has_the_number_of_mask_that_its_files_have(name, tmp_path):
    """It had this library's own, which is a word's there. Oracle: the config that goes out."""
    model = sdtt_jax.load(repository(tmp_path / "in", name))
    export_reference(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["mask_token_id"] == MASK != model.mask_id
    assert f"MASK (id {MASK})" in model_card(model, "reference", None)
    assert f"MASK (id {model.mask_id})" in model_card(model, "orbax", None)


@pytest.mark.parametrize(
    ("name", "reader"), [("qwen3", "   # or transformers"), ("dream", ""), (None, "own loader")]
)
def test_the_card_says_who_else_reads_its_files(name, reader, tmp_path, model):
    """All of them claimed to be read by the reference's loader, which knows no layout but its own."""
    if name is not None:
        model = sdtt_jax.load(repository(tmp_path / "in", name))
    [use] = [
        line
        for line in model_card(model, "reference", None).splitlines()
        if "sdtt_jax.load" in line
    ]
    assert use.endswith(reader or "sdtt_jax.load(FOLDER_OR_REPOSITORY)")
    assert "# or" not in model_card(model, "orbax", None)
