"""Rotations that are scaled for long texts, in and out. Oracle: tests/plain_llama.py, by the published names.

The tiny networks have waves of 6, 50 and 396 positions: one of each kind that "llama3" tells apart.
"""

import dataclasses
import json

import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.config import from_mapping, to_mapping
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.interchange.load import load_network
from sdtt_jax.networks.attention.rotary import NO_SCALING, RotaryScaling
from sdtt_jax.networks.config import LlamaDenoiserConfig, as_denoiser
from tests import plain_llama
from tests.interchange import test_gguf
from tests.interchange.llama_models import MASK, ROWS, model_of, repository

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 200,
}
# The scaling of Llama 3.2, whose waves are longer.
META = {
    **LLAMA3,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
# Long enough for the slow rotations to show.
IDS = np.random.default_rng(2).integers(0, ROWS, 24).astype(np.int32)


def scaled_logits(name, scaling, ids=IDS):
    _, plain, weights = model_of(name)
    return plain_llama.logits(weights, dataclasses.replace(plain, scaling=scaling), ids)


@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("scaling", [LLAMA3, LINEAR], ids=["llama3", "linear"])
def test_logits_are_those_of_the_scaled_twin(tmp_path, section, scaling):
    folder = repository(tmp_path / "m", "llama", **{section: scaling})
    expected = scaled_logits("llama", scaling)
    np.testing.assert_allclose(sdtt_jax.load(folder).logits(IDS[None])[0], expected, atol=1e-4)
    # The scaling is not lost in the tolerance.
    assert np.abs(expected - scaled_logits("llama", None)).max() > 0.1


def test_the_older_name_of_the_kind_is_read_too(tmp_path):
    old = {"type": "linear", "factor": 4.0}
    model = sdtt_jax.load(repository(tmp_path / "m", "llama", rope_scaling=old))
    assert model.config.rotary_scaling == RotaryScaling("linear", factor=4.0)


@pytest.mark.parametrize(
    "nested",
    [
        {"text_config": {"rope_scaling": LINEAR}},
        {"rope_parameters": {"full_attention": LINEAR}},
        {"rope_scaling": LINEAR, "rope_parameters": {"type": "linear", "factor": 4}},
    ],
    ids=str,
)
def test_it_is_found_in_any_section(tmp_path, nested):
    model = load_network(repository(tmp_path / "m", "llama", **nested))
    assert model.config.rotary_scaling == RotaryScaling("linear", factor=4.0)


# Both are named, each with its value.
TWO = r"rope_\w+=RotaryScaling.*, but also rope_parameters=RotaryScaling"


@pytest.mark.parametrize(
    ("nested", "said"),
    [
        ({"text_config": {"rope_scaling": {"type": "yarn", "factor": 4}}}, "type='yarn'"),
        ({"rope_scaling": LINEAR, "rope_parameters": {**LINEAR, "factor": 2.0}}, TWO),
        ({"rope_parameters": {"a": LINEAR, "b": {"rope_type": "default"}}}, TWO),
    ],
    ids=str,
)
def test_two_that_differ_or_one_below_that_is_unknown_are_refused(tmp_path, nested, said):
    with pytest.raises(CheckpointError, match=said):
        load_network(repository(tmp_path / "m", "llama", **nested))


@pytest.mark.parametrize(
    "unscaled", [None, {}, {"rope_type": "default"}, {"type": "default"}, {"rope_theta": 500.0}]
)
def test_what_is_not_scaled_is_not(tmp_path, unscaled):
    model = sdtt_jax.load(repository(tmp_path / "m", "llama", rope_parameters=unscaled))
    assert model.config.rotary_scaling == NO_SCALING


def test_a_denoiser_that_is_made_of_it_is_scaled_too(tmp_path):
    folder = repository(tmp_path / "m", "llama", rope_scaling=LLAMA3)
    causal = sdtt_jax.load(folder)
    denoiser = sdtt_jax.load(folder, causal=False, shift=True, mask_id=MASK)
    assert denoiser.config.rotary_scaling == causal.config.rotary_scaling != NO_SCALING
    assert as_denoiser(causal.config, shift=True).rotary_scaling == causal.config.rotary_scaling
    stored = json.loads(json.dumps(to_mapping(denoiser.config)))
    assert from_mapping(LlamaDenoiserConfig, stored) == denoiser.config


@pytest.mark.parametrize("scaling", [LLAMA3, LINEAR], ids=["llama3", "linear"])
def test_what_was_trained_further_says_it_in_its_config(tmp_path, scaling):
    """A student has no stored layout, so its config is written anew."""
    model = sdtt_jax.load(repository(tmp_path / "m", "llama", rope_scaling=scaling))
    facts = {name: model.facts[name] for name in ("path", "kind")}
    export_reference(dataclasses.replace(model, facts=facts), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_scaling"] == scaling
    again = sdtt_jax.load(tmp_path / "out")
    assert again.config == model.config
    np.testing.assert_array_equal(again.logits(IDS[None]), model.logits(IDS[None]))


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (
            {"rope_type": "yarn", "factor": 4.0},
            r"rope_scaling\.rope_type='yarn'; .*linear and llama3",
        ),
        ({"rope_type": "dynamic", "factor": 4.0}, "rope_type='dynamic'"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "rope_type='longrope'"),
        ({"type": "su", "factor": 4.0}, r"rope_scaling\.type='su'"),
        ({"rope_type": ["llama3"]}, r"rope_type=\['llama3'\]"),
        ({"factor": 4.0}, r"rope_scaling\.type=None"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor=None; 'llama3' needs it"),
        ({"rope_type": "linear", "factor": "4"}, "factor='4'"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor=1.0 must exceed"),
        ({**LINEAR, "factor": -1.0}, "rope_scaling: factor must be positive"),
        ("linear", "rope_scaling='linear'; it must be a group"),
    ],
    ids=str,
)
def test_other_scalings_are_refused_by_name(tmp_path, scaling, said):
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(repository(tmp_path / "m", "qwen3", rope_scaling=scaling))


class TestGguf:
    """Files of Llama 3.1 hold the divisors of their frequencies; linearly scaled ones hold the factor."""

    # Waves of 6, 167, 4443 and 118,143 positions: two stay, the last is divided by the factor.
    BASE = 500_000.0
    IDS = np.random.default_rng(4).integers(0, len(test_gguf.TOKENS), 40).astype(np.int32)

    def write(self, path, divisors=None, change=None, base=BASE):
        def based(writer):
            writer.kv_data[0]["llama.rope.freq_base"].value = base
            if change is not None:
                change(writer)

        more = {} if divisors is None else {"rope_freqs.weight": np.float32(divisors)}
        return test_gguf.write(path, test_gguf.weights(), change=based, more=more.items())

    def divisors(self):
        frequencies = self.BASE ** (-np.arange(4) / 4)
        return [f / plain_llama.slowed(f, META) for f in frequencies]

    def logits(self, scaling, base=BASE):
        plain = dataclasses.replace(test_gguf.PLAIN, base=base, scaling=scaling)
        return plain_llama.logits(test_gguf.weights(), plain, self.IDS)

    def test_divisors_of_llama_3_1_are_read(self, tmp_path):
        model = sdtt_jax.load(self.write(tmp_path / "m.gguf", self.divisors()))
        assert model.config.rotary_scaling == RotaryScaling("llama3", factor=32.0)
        expected = self.logits(META)
        np.testing.assert_allclose(model.logits(self.IDS[None])[0], expected, atol=1e-4)
        assert np.abs(expected - self.logits(None)).max() > 1e-2
        export_reference(model, tmp_path / "out")
        assert json.loads((tmp_path / "out/config.json").read_text())["rope_scaling"] == META
        again = sdtt_jax.load(tmp_path / "out")
        np.testing.assert_allclose(again.logits(self.IDS[None])[0], expected, atol=1e-4)

    def test_divisors_of_one_scale_nothing(self, tmp_path):
        model = sdtt_jax.load(self.write(tmp_path / "m.gguf", np.ones(4)))
        assert model.config.rotary_scaling == NO_SCALING

    def test_linear_scaling_is_read(self, tmp_path):
        def linear(writer):
            writer.add_rope_scaling_type(test_gguf.gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(4.0)

        model = sdtt_jax.load(self.write(tmp_path / "m.gguf", change=linear, base=500.0))
        expected = self.logits({"rope_type": "linear", "factor": 4.0}, base=500.0)
        np.testing.assert_allclose(model.logits(self.IDS[None])[0], expected, atol=1e-4)

    @pytest.mark.parametrize("divisors", [[1, 1, 2, 3], [1, 1, 32], [1, 1, 1, 1e-3]], ids=str)
    def test_other_divisors_are_refused(self, tmp_path, divisors):
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight does not hold the factors"):
            sdtt_jax.load(self.write(tmp_path / "m.gguf", divisors))

    def test_other_scalings_are_refused_by_name(self, tmp_path):
        def yarn(writer):
            writer.add_rope_scaling_type(test_gguf.gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(4.0)

        with pytest.raises(CheckpointError, match=r"rope\.scaling\.type='yarn'"):
            sdtt_jax.load(self.write(tmp_path / "m.gguf", change=yarn))
