"""Causal models through `sdtt_jax.load`. Oracles: golden values, and the network's own functions."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdtt_jax
from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.causal.sampler import generate
from sdtt_jax.checkpoints.store import save_params
from sdtt_jax.config import to_mapping
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.interchange.load import load_denoiser
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.ops.sequences import arrangement_of
from sdtt_jax.parallel.mesh import MeshConfig, abstract_mesh, make_mesh
from tests.model.runs import random_params

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def judge(run):
    """A run's judge of random parameters beside its teacher."""
    vocab_size = sdtt_jax.load(run).config.vocab_size
    config = CausalConfig(vocab_size=vocab_size, length=12, num_layers=1, embed_dim=16, num_heads=2)
    meta = {"kind": "causal", "model": to_mapping(config), "stage": "judge"}
    save_params(run / "judge" / "final", random_params(CausalNetwork(config), 9), meta)
    return sdtt_jax.load(run / "judge")


def test_methods_transfer_nothing_by_accident(judge):
    """`jax_transfer_guard` stopped `sample`. Oracle: JAX's guard."""
    key, tokens = jax.random.key(0), np.zeros((2, 12), np.int32)
    for guard in ("allow", "disallow"):
        with jax.transfer_guard(guard):
            judge.log_probs(tokens)
            judge.score(tokens)
            judge.sample(key, 2, 4, "in", temperature=0.5)


def test_golden_values_of_the_causal_baseline(golden):
    model = sdtt_jax.load(golden / "reference_tiny" / "ar_hub.safetensors")
    assert isinstance(model, CausalModel)
    with np.load(golden / "reference_tiny" / "ar_forward.npz") as file:
        tokens, expected, nll = file["tokens"], file["logits"], file["nll"]
    log_probs = np.asarray(model.log_probs(tokens))
    assert log_probs.shape == (*tokens.shape, model.config.vocab_size)
    np.testing.assert_allclose(log_probs, expected[..., : model.config.vocab_size], **CLOSE)
    next_token = np.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(-next_token, nll, **CLOSE)


def test_golden_values_of_gpt2(golden):
    model = sdtt_jax.load(golden / "gpt2_tiny")
    with np.load(golden / "gpt2_tiny" / "forward.npz") as file:
        tokens, expected = file["tokens"], file["logits"]
    np.testing.assert_allclose(model.logits(tokens), expected, **CLOSE)


def test_activations_in_half_precision_on_demand(golden):
    """Parameters stay float32; logits differ by the rounding of bfloat16 and no more."""
    folder = golden / "gpt2_tiny"
    whole, half = sdtt_jax.load(folder), sdtt_jax.load(folder, compute_dtype="bfloat16")
    assert half.config.compute_dtype == "bfloat16"
    with np.load(folder / "forward.npz") as file:
        tokens = file["tokens"]
    difference = np.abs(np.asarray(whole.logits(tokens)) - np.asarray(half.logits(tokens)))
    assert 0 < difference.max() < 0.1
    with pytest.raises(ConfigError, match="compute_dtype='float8'"):
        sdtt_jax.load(folder, compute_dtype="float8")


def test_a_mesh_that_does_not_divide_a_model_is_said_with_the_model(golden, judge):
    """Of model, judge, baseline and helper it was not said whose they are. Oracle: 2 and 4 heads."""
    for path in (golden / "gpt2_tiny", judge.folder):
        with pytest.raises(ConfigError, match=f"{path}.*: .* axis 'heads' .* split into 5"):
            sdtt_jax.load(path, mesh=abstract_mesh(MeshConfig(model=5), 5))


def test_parameters_go_straight_to_their_places_on_a_mesh(golden):
    mesh = make_mesh(MeshConfig())
    plain, placed = (
        sdtt_jax.load(golden / "gpt2_tiny"),
        sdtt_jax.load(golden / "gpt2_tiny", mesh=mesh),
    )
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(placed.params))
    jax.tree.map(np.testing.assert_array_equal, plain.params, placed.params)
    with jax.set_mesh(jax.make_mesh((1,), ("x",))):  # a caller's own
        found = placed.log_probs([[5, 6, 7]])
    np.testing.assert_allclose(found, plain.log_probs([[5, 6, 7]]), rtol=1e-5)


def test_a_judge_scores_and_writes(judge):
    """Oracles: log-probabilities summed by hand, and `generate`."""
    tokens = np.arange(24).reshape(2, 12) % judge.config.vocab_size
    bos = judge.tokenizer.bos_id
    inputs = np.concatenate([np.full((2, 1), bos), tokens[:, :-1]], axis=1)
    log_probs = np.take_along_axis(np.asarray(judge.log_probs(inputs)), tokens[..., None], 2)
    np.testing.assert_allclose(judge.score(tokens), -log_probs[..., 0].mean(-1), rtol=1e-5)

    key = jax.random.key(2)
    # With BOS, the three letters are as many tokens as the longest prompt below: one program for both.
    texts = np.asarray(judge.sample(key, 3, 5, "god", batch_size=2))
    assert texts.shape == (3, 3 + 5)
    prompt = np.tile(np.concatenate([[bos], judge.tokenizer.encode("god")]), (2, 1))
    first = generate(
        judge.network, judge.params, jax.random.fold_in(key, 0), prompt=prompt, num_tokens=5
    )
    np.testing.assert_array_equal(texts[:2], np.asarray(first)[:, 1:])


@pytest.mark.parametrize("text", ["in", ""])
def test_a_model_of_instructions_writes_behind_the_bos_that_ends_a_prompt(judge, text):
    """Oracle: a model that is given this BOS as a token of the prompt, as a denoiser's prior has it."""
    taught = dataclasses.replace(judge, facts=judge.facts | {"sequences": "prompted"})
    bos, key = judge.tokenizer.bos_id, jax.random.key(2)
    prompt = np.tile(np.concatenate([[bos], judge.tokenizer.encode(text), [bos]]), (2, 1))
    [write] = judge.batches(key, prompt, 5)
    np.testing.assert_array_equal(taught.sample(key, 2, 5, text), write().tokens[:, 1:])


def test_a_prompt_that_spells_its_bos_gets_no_second(judge):
    """As a denoiser reads it (`given_tokens`). Oracle: the prompt's own tokens."""
    bos = judge.tokenizer.bos_id
    spelled = SimpleNamespace(bos_id=bos, eos_id=1, encode_part=lambda _: np.int32([5, bos]))
    facts = judge.facts | {"sequences": "prompted"}
    taught = dataclasses.replace(judge, facts=facts, tokenizer=spelled)
    [row] = np.asarray(taught.sample(jax.random.key(2), 1, 2, "q<s>"))
    assert row[:-2].tolist() == [5, bos]


@pytest.fixture(scope="module")
def of_documents(judge):
    """The judge, as if trained on `documents`, with parameters by which each token matters."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.4, x.shape).astype(x.dtype), judge.params)
    return dataclasses.replace(judge, params=params, facts=judge.facts | {"sequences": "documents"})


def test_logits_read_each_text_of_a_row_as_in_training(of_documents):
    """Oracle: the text in a row of its own, after BOS; rotations know only distances, hence 1e-5."""
    bos, eos = of_documents.ends
    first, second = [bos, 5, 6, 7], [bos, 4, 8, 5, 9]
    alone = of_documents.log_probs(np.int32([second]))
    packed = dataclasses.replace(of_documents, facts=of_documents.facts | {"sequences": "packed"})
    # What follows an EOS is read after BOS, whether a BOS is there or not.
    for row in ([*first, eos, *second], [*first, eos, *second[1:]]):
        together = np.asarray(of_documents.log_probs(np.int32([row])))
        np.testing.assert_allclose(together[:, -5:], alone, atol=1e-5)
        np.testing.assert_allclose(together[:, :4], of_documents.log_probs([first]), atol=1e-5)
        assert np.abs(packed.log_probs(np.int32([row]))[:, -5:] - alone).max() > 0.1


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("same", [False, True], ids=["two-ends", "one-end"])
def test_logits_are_those_of_the_score(of_documents, wrap, same):
    """Also of GPT-2's vocabulary, whose BOS is its EOS. Oracles: the training's nll, and products of logits.

    In training no BOS follows an EOS; where a user puts one, it begins the text, for `score` as for `logits`.
    """
    bos, eos = of_documents.ends
    bos = eos if same else bos
    facts = of_documents.facts | {"begins_with_bos": wrap}
    tokenizer = SimpleNamespace(bos_id=bos, eos_id=eos)
    model = dataclasses.replace(of_documents, facts=facts, tokenizer=tokenizer)
    trained = np.int32([[bos] * wrap + [5, 6, eos, 7, 4, eos, eos, 8]])
    begun_again = np.int32([[bos] * wrap + [5, 6, eos, bos, 7, 4]])
    for tokens in (trained, begun_again):
        inputs = np.concatenate([[[bos]], tokens[:, :-1]], axis=1).astype(np.int32)
        log_probs = np.take_along_axis(np.asarray(model.log_probs(inputs)), tokens[..., None], 2)
        np.testing.assert_allclose(model.score(tokens), -log_probs[..., 0].mean(-1), rtol=1e-5)
        if tokens is trained:
            arrangement = arrangement_of(tokens, model.sequences)
            nll = causal_nll(model.network, model.params, tokens, bos, arrangement)
            np.testing.assert_allclose(nll, -log_probs[..., 0], **CLOSE)


def test_after_an_eos_a_text_of_its_own_is_written(of_documents):
    """Oracle: a greedy loop without a cache that reads the newest text alone, after BOS.

    These parameters often write token 8, so here it is EOS.
    """
    bos, eos = of_documents.tokenizer.bos_id, 8
    model = dataclasses.replace(of_documents, tokenizer=SimpleNamespace(bos_id=bos, eos_id=eos))
    prompts = np.int32([[bos, 5, eos, 6], [bos, 7, 3, eos], [bos, 5, 6, 4], [bos, eos, bos, 9]])
    packed = dataclasses.replace(model, facts=model.facts | {"sequences": "packed"})
    texts, others = (
        np.asarray(each.batches(jax.random.key(0), prompts, 8, temperature=0.0)[0]().tokens)
        for each in (model, packed)
    )
    assert (texts[:, 4:-1] == eos).any()
    assert (texts != others).any()
    for row in texts.tolist():
        for end in range(4, 12):
            begin = max((i + 1 for i in range(end) if row[i] == eos), default=1)
            text = row[begin + (row[begin] == bos and begin < end) : end]
            padded = np.int32([[bos, *text] + [4] * (12 - len(text))])
            assert row[end] == int(packed.logits(padded)[0, len(text)].argmax())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt": ["in", "the"]}, r"prompt must be one text, not \['in', 'the'\]"),
        ({"topk": 3}, "sample has no field 'topk'; did you mean 'top_k'"),
        ({"key": 0}, "key must be one jax.random.key"),
    ],
)
def test_an_argument_of_another_kind_is_named(judge, options, named):
    with pytest.raises(ConfigError, match=named):
        judge.sample(**{"key": jax.random.key(0), "num_samples": 2, "num_tokens": 3} | options)


def test_what_needs_a_denoiser_says_so(judge):
    with pytest.raises(CheckpointError, match=r"holds a causal model.*needs a denoiser"):
        load_denoiser(judge.facts["path"])


def test_without_a_tokenizer_there_is_no_text(golden):
    model = sdtt_jax.load(golden / "gpt2_tiny")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        model.sample(jax.random.key(0), 1, 2)


def test_gpt2_goes_out_bit_for_bit(golden, tmp_path):
    export_reference(sdtt_jax.load(golden / "gpt2_tiny"), tmp_path / "out")
    came = load_file(golden / "gpt2_tiny" / "model.safetensors")
    went = load_file(tmp_path / "out" / "model.safetensors")
    assert went.keys() == came.keys()
    for name, array in came.items():
        assert went[name].tobytes() == array.tobytes(), name
    config = json.loads((golden / "gpt2_tiny" / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_a_judge_goes_out_in_both_forms_and_comes_back(judge, tmp_path):
    export_orbax(judge, tmp_path / "orbax")
    export_reference(judge, tmp_path / "reference")
    back = sdtt_jax.load(tmp_path / "orbax")
    assert back.config == judge.config
    jax.tree.map(np.testing.assert_array_equal, back.params, judge.params)
    theirs = sdtt_jax.load(tmp_path / "reference")
    tokens = np.arange(24).reshape(2, 12) % judge.config.vocab_size
    np.testing.assert_array_equal(theirs.logits(tokens), judge.logits(tokens))


def test_gpt2_without_its_config_is_refused(golden, tmp_path):
    shutil.copy(golden / "gpt2_tiny" / "model.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match=r"holds a GPT-2; its sizes are in its config.json"):
        sdtt_jax.load(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="neither a denoiser or causal baseline"):
        sdtt_jax.load(tmp_path)


def test_the_number_of_tokens_may_be_of_few_bits(judge):
    """Oracle: the same number of Python's."""
    key = jax.random.key(0)
    found = judge.sample(key, 1, np.int8(127))
    np.testing.assert_array_equal(found, judge.sample(key, 1, 127))
