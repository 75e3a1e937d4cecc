"""Models as flags ask for them. Oracles: a bound that all thresholds keep, and a text of one letter, so that
neighbours can predict nothing else."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.exits import THRESHOLDS, Calibrated
from sdtt_jax.evaluation.harness import Options
from sdtt_jax.evaluation.record import Record, own_path
from sdtt_jax.evaluation.settings import Sampling, Settings
from sdtt_jax.evaluation.subject import Subject, check_writes
from sdtt_jax.evaluation.suites import SUITES, exits
from sdtt_jax.evaluation.variants import variant
from sdtt_jax.networks.exiting import Exiting
from tests.networks.test_exiting import LENGTH, NETWORK, PARAMS
from tests.worlds import as_causal, as_model

TOKENIZER = train_tokenizer(TokenizerConfig(model_type="char"), ["ab\n"])
BOUND = 0.99


@pytest.fixture
def model(tmp_path):
    model = as_model(NETWORK, PARAMS())
    facts = model.facts | {"path": str(tmp_path)}
    return dataclasses.replace(model, tokenizer=TOKENIZER, facts=facts)


@pytest.fixture
def text(tmp_path):
    """400 sequences, enough for a bound that every threshold keeps to give the lowest threshold."""
    path = tmp_path / "text.txt"
    path.write_text("a" * 400 * LENGTH)
    return str(path)


def test_an_exit_is_calibrated_by_the_suite_and_then_used(model, text, tmp_path):
    settings = Settings(held_out=text, exit_bound=BOUND, batch_size=400)
    record = Record(tmp_path / "exits.out", model.identity)
    SUITES["exits"].run(Subject(model, settings), record)
    found = record.items[f"exits/bound_{BOUND}"]
    assert (found["threshold"], found["num_texts"]) == (min(THRESHOLDS), 400)
    assert json.loads((tmp_path / "exits.json").read_text()).keys() == {str(BOUND)}
    early = variant(model, Options(early_exit=BOUND), None)
    assert early.denoiser == Exiting(NETWORK, found["threshold"])
    assert early.facts["variant"]["early_exit"]["threshold"] == found["threshold"]
    assert early.identity["digest"] != model.identity["digest"]
    assert own_path(early) is None
    with pytest.raises(ConfigError, match=r"early_exit=0.5: its threshold is not .*there are 0.99"):
        variant(model, Sampling(early_exit=0.5), None)
    other = dataclasses.replace(model, params=jax.tree.map(lambda x: x + 1, PARAMS()))
    with pytest.raises(ConfigError, match=r"exits.json, was fitted to other parameters"):
        variant(other, Sampling(early_exit=BOUND), None)


def test_a_threshold_is_for_the_kind_of_sequences_that_it_was_calibrated_on(
    model, text, tmp_path, monkeypatch
):
    """Earlier versions stored thresholds without a kind, calibrated as if all sequences were packed."""
    padded = dataclasses.replace(model, facts=model.facts | {"sequences": "padded"})
    digest = {"params_digest": model.params_digest}
    old = {"0.7": {"threshold": 0.5, "failure": 0.05, **digest}}
    path = tmp_path / "exits.json"
    path.write_text(json.dumps(old))
    assert variant(model, Sampling(early_exit=0.7), None).denoiser == Exiting(NETWORK, 0.5)
    with pytest.raises(
        ConfigError, match=r"as if .* packed, but they are padded; calibrate it .*0.7 again"
    ):
        variant(padded, Sampling(early_exit=0.7), None)

    monkeypatch.setattr(exits, "calibrate", lambda *_, **__: Calibrated(0.6, 0.1, 2.0))
    record = Record(tmp_path / "padded.out", padded.identity)
    SUITES["exits"].run(Subject(padded, Settings(held_out=text, exit_bound=0.7)), record)
    early = variant(padded, Sampling(early_exit=0.7), None)
    assert early.denoiser == Exiting(NETWORK, 0.6)
    with pytest.raises(ConfigError, match=r"sequences were padded, but they are packed"):
        variant(model, Sampling(early_exit=0.7), None)


def test_neighbours_say_what_stood_in_the_text(model, text):
    settings = Sampling(neighbours=text, neighbour_texts=32, neighbour_share=0.75)
    near = variant(model, settings, None)
    store = near.params["store"]
    letter = TOKENIZER.encode("a")[0]
    assert set(np.unique(store.tokens)) <= {letter, TOKENIZER.eos_id}
    assert 0.25 * 32 * LENGTH < len(store.tokens) < 0.75 * 32 * LENGTH
    nothing = np.full((1, LENGTH), NETWORK.mask_id, np.int32)
    mixed, own = (np.exp(m.log_probs(nothing))[..., letter] for m in (near, model))
    np.testing.assert_allclose(mixed, 0.75 + 0.25 * own, atol=1e-5)
    written = near.sample(jax.random.key(0), 8, 4)
    assert (written == letter).mean() > 0.6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidance": 1.0}, "leave the neighbours out"),
        ({"mode": "speculative"}, "mode=speculative needs another model"),
        ({"mode": "blocks:length=5"}, f"blocks of 5 do not divide {LENGTH} tokens"),
    ],
)
def test_what_a_model_with_neighbours_cannot_do_is_refused_before_any_text_is_read(
    model, options, said
):
    """Oracle: a datastore that cannot be made, since its text does not exist."""

    def check(near):
        assert near.facts["variant"]["neighbours"] == "nowhere"
        check_writes(near, SamplerConfig(LENGTH, **options), None, LENGTH)

    with pytest.raises(ConfigError, match=said):
        variant(model, Sampling(neighbours="nowhere"), None, check)


def test_without_a_flag_nothing_changes(model):
    assert variant(model, Sampling(), None) is model


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"neighbours": "own"}, "a run with a data folder"),
        ({"neighbours": "nowhere"}, "--neighbours: nowhere does not exist"),
    ],
)
def test_what_is_missing_is_said(model, fields, said):
    with pytest.raises(ConfigError, match=said):
        variant(model, Sampling(**fields), None)


IDLE = {
    "mode": "confidence", "time_grid": "cosine", "cooling": 0.5, "guidance": 1.0,
    "early_exit": 0.1, "neighbours": "own", "num_steps": (4,),
    "estimators": ("counts",), "num_maskings": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((Settings, {name: value}) for name, value in IDLE.items()),
        (Options, {"num_steps": 77}),
        (Options, {"num_maskings": 99}),
    ],
)
def test_what_would_change_nothing_for_a_causal_model_is_refused(kind, fields):
    """It writes token by token, and its likelihood is exact. Oracle: the names, written out here."""
    [name] = fields
    causal = as_causal(None, {})
    with pytest.raises(ConfigError, match=f"--{name} is for denoisers, and .* is causal"):
        variant(causal, kind(**fields), None)
    read = {"temperature": 0.5, "top_k": 3, "num_texts": 8} if kind is Settings else {}
    assert variant(causal, kind(seed=1, **read), None) is causal


def test_what_a_model_cannot_do_is_said(model, text):
    settings = Sampling(neighbours=text)
    with pytest.raises(ConfigError, match="is causal"):
        variant(as_causal(None, {}), settings, None)
    single = dataclasses.replace(model, facts=model.facts | {"sequences": "padded"})
    with pytest.raises(ConfigError, match="whole sequences"):
        variant(single, settings, None)
