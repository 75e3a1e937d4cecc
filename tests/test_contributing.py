"""The recipes of CONTRIBUTING.md, followed: each test adds a row to a table and uses it as users do.

Oracles: values that follow from the row by hand.
"""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdtt_jax
from experiments.configs.smoke import smoke
from experiments.evaluate import evaluate
from experiments.settings import run_config
from experiments.stages.objective import Networks, distill_objective
from sdtt_jax.checkpoints.store import save_params
from sdtt_jax.config import changed, from_mapping, to_mapping
from sdtt_jax.data import DataConfig, TokenizerConfig
from sdtt_jax.data.corpora import CORPORA, Corpus
from sdtt_jax.data.making import train_tokenizer
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.diffusion.decoders.base import Decoder
from sdtt_jax.diffusion.schedule import SCHEDULES, Functions
from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.errors import ConfigError, MismatchError
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import SUITES, ReportTable, Suite
from sdtt_jax.interchange.card import model_card
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.networks.kinds import KINDS, Kind
from tests.test_architecture import ROOT

VOCAB, LENGTH = 4, 8
RECIPES = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## Recipes\n")[2]
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", RECIPES, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_recipe_is_short_and_followed(title):
    assert f"test_{title.lower().replace(' ', '_')}" in globals()
    assert len([line for line in SECTIONS[title].splitlines() if line]) <= 10


@dataclasses.dataclass(frozen=True)
class BagConfig(sdtt_jax.DenoiserConfig):
    """The sizes of a `Bag`."""


@dataclasses.dataclass(frozen=True)
class Bag:
    """A network that predicts the same at every position: its only parameter is one row of logits."""

    config: BagConfig

    mask_id = property(lambda self: self.config.mask_id)
    padded_vocab = property(lambda self: self.config.padded_vocab)

    def init(self, key):
        del key
        return {"bag": jnp.zeros((1, self.padded_vocab))}

    def hidden(self, params, tokens, sigma=None):
        del params, sigma
        return jnp.ones((*tokens.shape, 1))

    def head_params(self, params):
        return params

    def logits(self, params, hidden):
        outside = jnp.arange(self.padded_vocab) > self.mask_id
        return hidden @ params["bag"] + jnp.where(outside, -1e6, 0.0)


def bag(schedule="log-linear"):
    config = BagConfig(VOCAB, LENGTH, embed_dim=2, num_heads=1)
    config_of_schedule = from_mapping(sdtt_jax.ScheduleConfig, {"kind": schedule})
    return sdtt_jax.MaskedDiffusion(Bag(config), sdtt_jax.make_schedule(config_of_schedule))


def test_a_divergence(monkeypatch):
    def entropy_gap(student, target, num_entries):
        del num_entries
        return (jnp.exp(student) * student).sum(-1) - (jnp.exp(target) * target).sum(-1)

    monkeypatch.setitem(DIVERGENCES, "entropy-gap", entropy_gap)
    diffusion, config = bag(), from_mapping(sdtt_jax.DistillConfig, {"divergence": "entropy-gap"})
    uniform = diffusion.denoiser.init(None)
    sure = jax.tree.map(lambda x: x.at[0, 0].set(1e4), uniform)
    x0, dt, key = jnp.zeros((2, LENGTH), jnp.int32), jnp.float32(1 / 8), jax.random.key(0)
    total, count = sdtt_jax.distillation_terms(diffusion, sure, uniform, x0, dt, key, config)
    np.testing.assert_allclose(total / count, math.log(VOCAB), rtol=1e-5)


def test_a_noise_schedule(monkeypatch):
    def square(config):
        keep = 1 - config.eps
        return Functions(
            sigma=lambda t: -jnp.log1p(-keep * t**2),
            dsigma=lambda t: 2 * keep * t / (1 - keep * t**2),
            importance_t=lambda u: 0.01 ** (1 - u),
        )

    monkeypatch.setitem(SCHEDULES, "square", square)
    diffusion = bag("square")
    times = jnp.array([0.5, 1.0])
    np.testing.assert_allclose(diffusion.schedule.move_chance(times), [0.25, 1], atol=1e-3)
    # A quarter of 2 * 4000 tokens at t = 1/2; the standard error is 0.005.
    x0, chance = jnp.zeros((2, 4000), jnp.int32), diffusion.schedule.move_chance(jnp.full(2, 0.5))
    x_t = sdtt_jax.q_xt(jax.random.key(0), x0, chance, diffusion.mask_id)
    assert abs((x_t == diffusion.mask_id).mean() - 0.25) < 0.02
    # `teacher.importance=True` is taken; log(1 - alpha) is linear in u, from 0.01² to 1.
    assert diffusion.schedule.config.can_flatten
    u = jnp.linspace(0.0, 1.0, 5)
    moved = diffusion.schedule.move_chance(diffusion.schedule.importance_t(u))
    np.testing.assert_allclose(jnp.diff(jnp.log(moved)), math.log(10), rtol=1e-3)


def test_a_decoder(monkeypatch, bag_model):
    @dataclasses.dataclass(frozen=True)
    class InOrder:
        from_the_right: bool = False

    def in_order(options, share, masked, schedule, times):
        del share
        places = jnp.arange(LENGTH)[::-1] if options.from_the_right else jnp.arange(LENGTH)
        call = jnp.broadcast_to(places * (len(times) - 1) // LENGTH, masked.shape)
        return call, jnp.broadcast_to(schedule.sigma(times)[:, None], (len(times), len(masked)))

    monkeypatch.setitem(DECODERS, "in-order", Decoder(InOrder, in_order))
    fields = {"num_steps": 4, "mode": "in-order:from_the_right=True"}
    config = from_mapping(sdtt_jax.SamplerConfig, fields)
    states = list(bag_model.states(jax.random.key(0), bag_model.prior(1), config))
    left = [int((state.x == bag_model.mask_id).sum()) for state in states]
    assert left == [8, 6, 4, 2, 0, 0]
    assert int(states[1].x[0, 0]) == bag_model.mask_id


@pytest.fixture
def bag_model(monkeypatch, tmp_path):
    """A stored model of one of the user's own networks, which writes "b" and nothing else."""
    monkeypatch.setitem(KINDS, "bag", Kind(BagConfig, Bag))
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char", vocab_size=16), ["abba"] * 8)
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    network = Bag(BagConfig(tokenizer.vocab_size, LENGTH, embed_dim=2, num_heads=1))
    token = tokenizer.encode_part("b")[0]
    params = {"bag": network.init(None)["bag"].at[0, token].set(1e4)}
    facts = {"kind": "bag", "schedule": {}, "model": to_mapping(network.config)}
    save_params(tmp_path / "final", params, facts)
    return sdtt_jax.load(tmp_path / "final")


def test_a_network(bag_model):
    assert isinstance(bag_model.denoiser, Bag)
    texts = bag_model.sample(jax.random.key(0), num_samples=2, num_steps=4)
    assert [bag_model.tokenizer.decode(text) for text in texts] == ["b" * LENGTH] * 2


def test_a_run_trains_and_distils_a_network_of_ones_own(monkeypatch):
    """Teacher and students were `Denoiser`s whatever was in the table. Oracle: the loss of a sure teacher."""
    monkeypatch.setitem(KINDS, "bag", Kind(BagConfig, Bag))
    config = run_config(to_mapping(changed(smoke(), network="bag", data={"length": LENGTH})))

    class OfBags(Networks):
        vocab_size, sequences = VOCAB, None

    networks = OfBags()
    networks.config = config
    own = networks.denoiser.config
    assert (type(own), own.length, own.embed_dim) == (BagConfig, LENGTH, config.model.embed_dim)
    student = networks.denoiser.init(None)
    teacher = {"bag": student["bag"].at[0, 0].set(1e4)}
    context = {"teacher_params": teacher, "dt": jnp.float32(1 / 8)}
    batch = jnp.zeros((2, LENGTH), jnp.int32)
    loss = distill_objective(networks)(teacher, context, batch, jax.random.key(0))
    np.testing.assert_allclose(loss.total, 0, atol=1e-6)
    with pytest.raises(ConfigError, match="network='causal' is none of bag, denoiser; take one"):
        changed(config, network="causal")
    with pytest.raises(ConfigError, match="need a teacher of this library"):
        changed(config, distillers=("sdtt", "coupled"))


def test_a_network_of_ones_own_is_exported(bag_model, tmp_path):
    """Its card was a KeyError in every format, and its parameters were said to be those of noise."""
    assert "| network | bag, 12 layers of 2, 1 heads |" in model_card(bag_model, "orbax", None)
    export_orbax(bag_model, tmp_path / "out")
    assert isinstance(sdtt_jax.load(tmp_path / "out").denoiser, Bag)
    with pytest.raises(MismatchError, match="a 'bag' network, for which the reference"):
        export_reference(bag_model, tmp_path / "reference")


def test_a_suite_of_the_evaluation(monkeypatch, bag_model, tmp_path):
    def suite(subject, record):
        token = subject.model.tokenizer.encode_part("b")[0]
        tokens = jnp.full((1, LENGTH), token)
        nats = subject.model.score(tokens, jax.random.key(subject.settings.seed))
        record.item("certainty/b", {"token": token}, lambda: {"nelbo": float(nats[0])})

    table = ReportTable("Certainty", "certainty", "text {who} | nats {nelbo:2}")
    monkeypatch.setitem(SUITES, "certainty", Suite(suite, "how sure the model is", (table,)))
    evaluate(Subject(bag_model, Settings()), ["certainty"], tmp_path / "b.json")
    items = json.loads((tmp_path / "b.json").read_text())["items"]
    assert items["certainty/b"]["result"] == {"nelbo": pytest.approx(0, abs=1e-4)}


def test_a_corpus(monkeypatch, tmp_path):
    texts = [f"verse {word} of a nursery rhyme" for word in "abcdefghijklmnopqrstuvwxyz"]
    corpus = Corpus("rhymes", lambda: iter(texts), licence="public domain")
    monkeypatch.setitem(CORPORA, corpus.name, corpus)
    config = from_mapping(DataConfig, {"corpus": "rhymes", "length": LENGTH})
    tokenizer = TokenizerConfig(model_type="char", vocab_size=64)
    info = sdtt_jax.prepare(config, tokenizer, tmp_path / "data", tmp_path / "tokenizer")
    assert info.num_characters == sum(map(len, texts))
    assert sdtt_jax.open_split(tmp_path / "data", "train").batch(0, 0, 2).shape == (2, LENGTH)
