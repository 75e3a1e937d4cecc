"""Latency. Oracle for the cost of a token: the compiler's FLOPs of the step, before its optimizations."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.decoders.learnt import SCHEDULES
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import latency
from sdtt_jax.evaluation.suites.latency import (
    Latency,
    Timing,
    measure_latency,
    racers,
)
from sdtt_jax.model.learnt import store_fitted
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import place_whole
from tests.worlds import (
    LENGTH,
    TableDenoiser,
    as_causal,
    as_model,
    noisy_params,
    random_table,
)

# One layer, because the compiler counts the body of a loop, here the loop over layers, only once.
SIZES = {"vocab_size": 100, "length": 64, "num_layers": 1, "embed_dim": 32, "num_heads": 2}
NETWORKS = {
    "causal": CausalNetwork(CausalConfig(**SIZES)),
    "gpt2": GPT2Network(GPT2Config(**SIZES)),
}
BATCH = 2


def _flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def _decode_flops(network, params, used, capacity=64):
    """FLOPs of one token after `used` others: one program, which learns their number only at run time."""

    def step(params, tokens, cache):
        hidden, cache = network.decode(params, tokens, cache)
        return network.logits(params, hidden[:, -1]), cache

    cache = network.init_cache(BATCH, capacity).replace(used=jnp.int32(used))
    return _flops(step, params, jnp.zeros((BATCH, 1), jnp.int32), cache)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cached_token_costs_the_same_at_every_position(name):
    """The step has as many FLOPs after 60 tokens as after 1. A place in the cache costs no more than
    its attention, some 4 FLOPs per feature of the width; without a cache, a token costs its whole prefix."""
    network = NETWORKS[name]
    params = noisy_params(network, 0)
    early, late = (_decode_flops(network, params, used) for used in (1, 60))
    assert early == late

    shorter = _decode_flops(network, params, 1, capacity=32)
    per_place = (late - shorter) / 32 / BATCH
    width = network.config.embed_dim
    assert 4 * width <= per_place < 6 * width

    def whole(params, tokens):
        return network.logits(params, network.hidden(params, tokens)[:, -1])

    recomputed = {n: _flops(whole, params, jnp.zeros((BATCH, n), jnp.int32)) for n in (16, 32, 64)}
    assert recomputed[32] > 1.9 * recomputed[16]
    assert recomputed[64] > 1.9 * recomputed[32]
    assert recomputed[64] > 30 * late


def test_both_models_are_measured_alike():
    key, timing = jax.random.key(0), Timing(batch=3, length=LENGTH, repeats=2)
    denoiser = as_model(TableDenoiser(), random_table(0))
    sampler = measure_latency(denoiser, key, SamplerConfig(num_steps=4), timing)
    network = NETWORKS["causal"]
    causal = measure_latency(as_causal(network, noisy_params(network, 0)), key, None, timing)
    assert 1 <= sampler.nfe <= 5
    assert causal.nfe == LENGTH
    for measured in (sampler, causal):
        assert len(measured.seconds) == 2
        assert measured.compile_s > 0


def test_a_causal_model_of_documents_is_timed_as_it_writes(monkeypatch):
    """With the mask that keeps its texts apart. Oracle: how it was trained."""
    given = []

    def write(*arguments, **options):
        given.append(options["sequences"])
        return generate(*arguments, **options)

    monkeypatch.setattr(latency, "generate", write)
    model = as_causal(NETWORKS["causal"], noisy_params(NETWORKS["causal"], 0))
    facts = model.facts | {"sequences": "documents", "ends": (0, 1)}
    model = dataclasses.replace(model, facts=facts)
    measure_latency(model, jax.random.key(0), None, Timing(batch=1, length=4, repeats=1))
    assert [sequences.kind for sequences in given] == ["documents"]


def test_a_budget_ends_the_repetitions_but_for_the_first():
    model = as_causal(NETWORKS["gpt2"], noisy_params(NETWORKS["gpt2"], 0))
    timing = Timing(batch=1, length=4, repeats=5, budget_s=0.0)
    assert len(measure_latency(model, jax.random.key(0), None, timing).seconds) == 1


def test_what_follows_from_the_seconds(monkeypatch, tmp_path):
    """Two texts of eight tokens in a median of 2 s, with 4 calls."""
    measured = Latency(1.0, [3.0, 1.0, 2.0], nfe=4)
    monkeypatch.setattr(latency, "measure_latency", lambda *_: measured)
    model = as_causal(NETWORKS["gpt2"], noisy_params(NETWORKS["gpt2"], 0))
    record = Record(tmp_path / "x.json", model.identity)
    latency.suite(Subject(model, Settings(latency_batches=(2,), length=8)), record)
    item = record.items["latency/autoregressive_batch_002"]
    assert (item["seconds"], item["seconds_each"]) == (2.0, [3.0, 1.0, 2.0])
    assert (item["seconds_per_call"], item["tokens_per_second"]) == (0.5, 8.0)


def test_a_helper_and_a_stored_schedule_are_timed(tmp_path):
    """As `Model.sample` has them. Oracle: the calls of the schedule; a speculative step asks both models."""
    model = as_model(TableDenoiser(), random_table(0))
    model = dataclasses.replace(model, facts=model.facts | {"path": str(tmp_path)})
    helper = as_model(TableDenoiser(), random_table(1))
    store_fitted(model, SCHEDULES, {"2": {"counts": "1/2"}})
    key, timing = jax.random.key(0), Timing(batch=2, length=LENGTH, repeats=1)
    found = []
    for mode in ("learnt", "speculative"):
        settings = Settings(mode=mode, num_steps=(2,))
        racer = racers(Subject(model, settings, helper=helper), key)[-1]
        assert ("helper" in racer.inputs) is (mode == "speculative")
        measured = measure_latency(racer.load(), key, racer.config, timing, racer.helper)
        found.append(measured.nfe)
    assert found[0] == 2
    assert found[1] >= 2


def test_texts_without_a_prompt_are_timed_without_guidance():
    """As the suite "generation" writes them, so that both meet in the race."""
    model = as_model(TableDenoiser(), random_table(0))
    settings = Settings(guidance=2.0, num_steps=(2,))
    assert racers(Subject(model, settings), jax.random.key(0))[-1].config.guidance == 0


def test_a_timing_names_its_mesh():
    """So that another mesh is timed again. Oracle: the shapes of the meshes, written out."""
    found = []
    for mesh in (None, make_mesh(MeshConfig(), jax.devices()[:1])):
        params = random_table(0) if mesh is None else place_whole(random_table(0), mesh)
        subject = Subject(as_model(TableDenoiser(), params), Settings(num_steps=(2,)))
        timed = racers(subject, jax.random.key(0))
        named = {str((r.facts.get("mesh"), r.inputs["environment"].get("mesh"))) for r in timed}
        found.append(named)
    shape = {"data": 1, "fsdp": 1, "model": 1}
    assert found == [{"(None, None)"}, {f"({shape}, {shape})"}]
