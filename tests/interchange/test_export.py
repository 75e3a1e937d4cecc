"""Checkpoints out. Oracles: the file that came in, and our own loader."""

import dataclasses
import json
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdtt_jax
from sdtt_jax.config import from_mapping, to_mapping
from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.data.tokenizer import HubTokenizer, Special
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.errors import CheckpointError, ConfigError, MismatchError
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.interchange.unfinished import UNFINISHED
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import CausalConfig, Denoiser, DenoiserConfig
from sdtt_jax.networks.config import (
    GPT2Config,
    GPT2DenoiserConfig,
    LlamaConfig,
    LlamaDenoiserConfig,
)
from sdtt_jax.networks.gpt2 import GPT2Denoiser
from sdtt_jax.networks.kinds import kind_of, network_of
from sdtt_jax.networks.llama import LlamaDenoiser
from tests.experiments.processes import call
from tests.interchange.llama_models import vocabulary
from tests.model.runs import random_params

CONFIG = {
    "config": {"model": {"length": 32, "n_heads": 4}, "time_conditioning": False},
    "more": [1],
}


@pytest.fixture(params=["teacher_hub", "teacher_nested", "student_hub", "ar_hub"])
def published(request, golden, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    source = golden / "reference_tiny" / f"{request.param}.safetensors"
    shutil.copy(source, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def same_file(a, b):
    left, right = load_file(a), load_file(b)
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert right[name].dtype == array.dtype, name
        assert right[name].shape == array.shape, name
        assert right[name].tobytes() == array.tobytes(), name


def test_what_came_in_goes_out_bit_for_bit(published, tmp_path):
    export_reference(sdtt_jax.load(published), tmp_path / "out")
    same_file(published / "model.safetensors", tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG
    again = sdtt_jax.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, sdtt_jax.load(published).params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_half_precision_goes_out_as_it_came(published, tmp_path, dtype):
    path = published / "model.safetensors"
    save_file({name: x.astype(dtype) for name, x in load_file(path).items()}, path)
    export_reference(sdtt_jax.load(published), tmp_path / "out")
    same_file(path, tmp_path / "out" / "model.safetensors")


def test_a_folder_with_something_in_it_is_left_alone(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = call("export", f"--checkpoint={published}", f"--output={tmp_path / 'out'}")
    assert done.status == 2
    assert "not an empty folder" in done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_orbax_writes_nothing_where_it_could_not_be_read_again(tmp_path):
    """Said before the model is looked for."""
    output = tmp_path / "ex[1]"
    done = call("export", "--format=orbax", "--checkpoint=none", f"--output={output}")
    assert done.status == 2
    assert "has [ in its path" in done.stderr
    assert not output.exists()


def test_orbax_needs_a_tokenizer_and_writes_nothing_without(published, tmp_path):
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        export_orbax(sdtt_jax.load(published), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_ours_goes_out_in_both_forms_and_comes_back(run, model, tmp_path):
    """`run` and `model` are those of test_model.py: random parameters, a tokenizer of characters."""
    export_orbax(model, tmp_path / "orbax")
    export_reference(model, tmp_path / "reference")
    back = sdtt_jax.load(tmp_path / "orbax")
    assert back.config == model.config
    assert back.text_tokenizer.digest == back.facts["tokenizer"] == model.text_tokenizer.digest
    assert back.text_tokenizer.normalize == back.facts["normalize"] == "text8"
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)
    theirs = sdtt_jax.load(tmp_path / "reference")
    assert theirs.config == model.config
    with pytest.raises(CheckpointError, match="export it from its run with --format=orbax"):
        _ = theirs.text_tokenizer
    # Not leaf by leaf: the vocabulary's padding, random here, is not exported to the reference's layout.
    tokens = np.arange(2 * model.config.length).reshape(2, -1) % model.config.vocab_size
    np.testing.assert_array_equal(theirs.logits(tokens), model.logits(tokens))
    assert run.exists()


SIZES = {"length": 12, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
# Of each layout: the denoiser of a config, and the fields of the config besides the sizes.
DENOISERS = {
    "DiT": (Denoiser, DenoiserConfig, {"cond_dim": 4}),
    "GPT-2": (GPT2Denoiser, GPT2DenoiserConfig, {}),
    "Llama": (LlamaDenoiser, LlamaDenoiserConfig, {}),
}
CAUSAL = {"DiT": CausalConfig, "GPT-2": GPT2Config, "Llama": LlamaConfig}
TRAININGS = {
    "packed": (False, ScheduleConfig("cosine", eps=0.01)),
    "packed, wrapped": (True, ScheduleConfig("geometric", sigma_min=0.01, sigma_max=5.0)),
    "documents": (False, ScheduleConfig("linear", sigma_max=7.0)),
    "documents, wrapped": (True, ScheduleConfig()),
    "padded": (False, ScheduleConfig(eps=0.02)),
    "prompted": (False, ScheduleConfig("cosine-squared")),
}


def of_ours(layout, **facts):
    """A denoiser as `load` gives one that was trained here, with a tokenizer that its layout can hold."""
    return of_network(layout, tokenizer_of(layout), **facts)


def tokenizer_of(layout, normalize="none"):
    if layout == "Llama":
        words = {word: i for i, word in enumerate([*"abcdefgh", "<s>", "</s>"])}
        special = Special(len(words) + 1, words["<s>"], words["</s>"], len(words))
        content = vocabulary(words).to_str().encode()
        return HubTokenizer(TokenizerConfig(kind="hub"), normalize, content, special)
    return train_tokenizer(TokenizerConfig(kind="gpt2"), [], normalize)


def of_network(layout, tokenizer, **facts):
    kind, config, more = DENOISERS[layout]
    denoiser = kind(config(vocab_size=tokenizer.vocab_size, **SIZES, **more))
    return Model(
        params=random_params(denoiser, 0),
        tokenizer=tokenizer,
        facts={"path": "ours", "kind": kind_of(denoiser), "stage": "teacher"} | facts,
        denoiser=denoiser,
        schedule=make_schedule(from_mapping(ScheduleConfig, facts["schedule"])),
    )


def words_of(size, mask_row=None):
    """A vocabulary of `size` words, of which one may be MASK."""
    named = {0: "<s>", 1: "</s>", 2: "a", mask_row or 3: "<mask>"}
    words = {named.get(i, f"w{i}"): i for i in range(size)}
    content = vocabulary(words).to_str().encode()
    special = Special(size, 0, 1, mask_row)
    return HubTokenizer(TokenizerConfig(kind="hub"), "none", content, special)


VOCABULARIES = {
    "as many words as GPT-2 has": lambda: words_of(50_257),
    "MASK among the words": lambda: words_of(12, mask_row=5),
    "words, normalised": lambda: tokenizer_of("Llama", "text8"),
    "GPT-2's, normalised": lambda: tokenizer_of("GPT-2", "text8"),
}


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("DiT", "as many words as GPT-2 has"),
        *((layout, "MASK among the words") for layout in DENOISERS),
        *((layout, "words, normalised") for layout in DENOISERS),
        ("DiT", "GPT-2's, normalised"),
        ("GPT-2", "GPT-2's, normalised"),
    ],
)
def test_its_tokenizer_goes_out_and_comes_back(layout, name, tmp_path):
    """Oracle: the tokenizer that goes out, of a text and of each of its tokens."""
    tokenizer = VOCABULARIES[name]()
    training = {"schedule": to_mapping(ScheduleConfig())}
    export_reference(of_network(layout, tokenizer, **training), tmp_path)
    back = sdtt_jax.load(tmp_path).text_tokenizer
    text = "w2 w11 In 1984, a B </s> w7"
    np.testing.assert_array_equal(back.encode(text), tokenizer.encode(text))
    tokens = range(min(tokenizer.vocab_size, 300))
    assert back.pieces(tokens) == tokenizer.pieces(tokens)
    assert (back.vocab_size, back.normalize) == (tokenizer.vocab_size, tokenizer.normalize)
    assert (back.bos_id, back.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)


@pytest.mark.parametrize("layout", DENOISERS)
def test_sequences_come_back_where_the_tokenizer_cannot(layout, tmp_path):
    """A vocabulary learnt here has no place in the layout, not even one as large as GPT-2's."""
    learnt = train_tokenizer(TokenizerConfig(model_type="char", vocab_size=32), ["a bad cab"] * 9)
    learnt.vocab_size = 50_257  # as if it had so many
    facts = {"schedule": to_mapping(ScheduleConfig()), "begins_with_bos": True}
    ours = of_network(layout, learnt, **facts, sequences="documents")
    export_reference(ours, tmp_path)
    back = sdtt_jax.load(tmp_path)
    assert back.tokenizer is None
    assert (back.sequences, back.first_token) == (ours.sequences, ours.first_token)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"bos_token_id": None, "eos_token_id": None}))
    with pytest.raises(CheckpointError, match="not which tokens begin and end a text; add bos_tok"):
        sdtt_jax.load(tmp_path)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("layout", DENOISERS)
def test_how_it_was_trained_goes_out_and_comes_back(layout, training, tmp_path):
    """Oracle: the denoiser that goes out, which begins its texts and takes noise and sequences as trained."""
    wrap, schedule = TRAININGS[training]
    said = {"begins_with_bos": wrap, "sequences": training.partition(",")[0]}
    ours = of_ours(layout, **said, schedule=to_mapping(schedule))
    export_reference(ours, tmp_path)
    back = sdtt_jax.load(tmp_path)
    assert back.text_tokenizer.vocab_size == ours.text_tokenizer.vocab_size
    assert back.sequences == ours.sequences
    assert (back.prompt_end, back.first_token) == (ours.prompt_end, ours.first_token)
    assert back.schedule.config == schedule
    for prompt in (None, "b"):
        np.testing.assert_array_equal(back.prior(2, prompt), ours.prior(2, prompt))


def causal_of(layout, **facts):
    """A causal model as `load` gives one that was trained here."""
    tokenizer = words_of(12) if layout == "Llama" else tokenizer_of(layout)
    sizes = SIZES | {"vocab_size": tokenizer.vocab_size, "compute_dtype": "bfloat16"}
    network = network_of(CAUSAL[layout](**sizes))
    facts |= {"path": "ours", "kind": kind_of(network)}
    params = random_params(network, 0)
    return CausalModel(network=network, params=params, tokenizer=tokenizer, facts=facts)


@pytest.mark.parametrize("form", [export_reference, export_orbax])
@pytest.mark.parametrize("layout", DENOISERS)
def test_of_which_tokens_it_is_a_model_goes_out_and_comes_back(layout, form, tmp_path):
    """Oracle: the model that goes out. A skeleton came back as a model of whole texts, and scored them."""
    for stage, facts, n in (("judge", {}, 1), ("skeleton", {"every": 4}, 4)):
        form(causal_of(layout, stage=stage, **facts), tmp_path / stage)
        back = sdtt_jax.load(tmp_path / stage)
        assert (back.every, back.as_helper.every) == (None if n == 1 else n, n)
    with pytest.raises(ConfigError, match="models only one token in 4"):
        back.score(np.zeros((1, 3), np.int32))


@pytest.mark.parametrize("layout", DENOISERS)
def test_it_computes_as_it_was_trained(layout, tmp_path):
    """Oracle: the logits of the model that goes out, which computes in bfloat16."""
    ours = causal_of(layout)
    export_reference(ours, tmp_path)
    tokens = np.arange(24).reshape(2, 12) % 8
    back = sdtt_jax.load(tmp_path)
    np.testing.assert_array_equal(back.logits(tokens), ours.logits(tokens))
    asked = sdtt_jax.load(tmp_path, compute_dtype="float32")
    assert (back.config.compute_dtype, asked.config.compute_dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("layout", "field", "value"),
    [("GPT-2", "causal", True), ("Llama", "causal", True), ("GPT-2", "shift", False)],
)
def test_what_the_format_has_no_field_for_is_refused(layout, field, value, tmp_path):
    """It was read as the usual network, with other logits. Oracle: the networks that the layout has."""
    ours = of_ours(layout, schedule=to_mapping(ScheduleConfig()))
    config = dataclasses.replace(ours.config, **{field: value})
    other = dataclasses.replace(ours, denoiser=network_of(config))
    with pytest.raises(MismatchError, match=f"export it as orbax:\n  {field}: {value} -> "):
        export_reference(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "form", "writer"),
    [
        *(
            ("DiT", export_reference, f"llama_export.{name}")
            for name in ("write_json", "write_tensors")
        ),
        ("Llama", export_reference, "llama_export.write_tensors"),
        ("Llama", export_orbax, "export.save_tokenizer"),
        ("Llama", export_orbax, "export.save_params"),
    ],
)
def test_what_is_not_written_to_its_end_is_no_model(layout, form, writer, tmp_path, monkeypatch):
    """Tensors whose config was not written yet were read as a model of the usual noise and sequences."""
    ours = of_ours(layout, schedule=to_mapping(ScheduleConfig("cosine")), sequences="documents")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(f"sdtt_jax.interchange.{writer}", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            form(ours, out)
    with pytest.raises(CheckpointError):
        sdtt_jax.load(out)
    form(ours, out)
    assert sdtt_jax.load(out).schedule.config.kind == "cosine"


def test_one_that_ends_early_leaves_an_older_one_as_it_was(tmp_path, monkeypatch):
    """Its tensors had the new config, and were read as a model of another schedule."""
    old, new = (
        of_ours("DiT", schedule=to_mapping(ScheduleConfig(kind)))
        for kind in ("log-linear", "cosine")
    )
    before = {path: path.read_bytes() for path in export_reference(old, tmp_path)}
    monkeypatch.setattr("sdtt_jax.interchange.llama_export.write_tensors", lambda *_: sys.exit(9))
    with pytest.raises(SystemExit):
        export_reference(new, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("form", [export_reference, export_orbax])
def test_orbax_is_not_written_beside_a_model_that_load_prefers(model, tmp_path, form):
    """`load` gave the older model. Over an older one of its kind it gives the new one."""
    place = tmp_path / "teacher" if form is export_orbax else tmp_path
    form(model, place)
    with pytest.raises(ConfigError, match=r"another model, .*would read in place of this one"):
        export_orbax(model, tmp_path)
    new = dataclasses.replace(model, params=jax.tree.map(lambda x: x + 1, model.params))
    for each in (model, new):
        export_orbax(each, tmp_path / "own")
    jax.tree.map(np.testing.assert_array_equal, sdtt_jax.load(tmp_path / "own").params, new.params)


def test_a_card_that_cannot_be_made_leaves_nothing_written(run, tmp_path):
    ours = shutil.copytree(run, tmp_path / "run")
    (ours / "config.json").write_text("{}")
    (ours / "results.json").write_text("{")
    out = tmp_path / "out"
    done = call("export", f"--checkpoint={ours}", f"--output={out}")
    assert (done.status, out.exists()) == (1, False), done.stderr
    assert "results.json" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--output=x",), 2, "--checkpoint is missing"),
        (("--checkpoint=x",), 2, "--output is missing"),
        (
            ("--checkpoint=x", "--output=y", "--format=onnx"),
            2,
            "choose one of reference, orbax, stablehlo",
        ),
        (
            ("--checkpoint=x", "--output=y", "--public"),
            2,
            "--public needs --push; leave it out",
        ),
        (("--checkpoint=/no/such", "--output=y"), 1, "no checkpoint at /no/such"),
    ],
)
def test_wrong_input_is_one_line(arguments, status, message):
    done = call("export", *arguments)
    assert done.status == status
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1


def test_on_the_command_line(published, tmp_path):
    """Into a folder that a killed export has left."""
    out = tmp_path / "out"
    (out / "final.orbax-checkpoint-tmp").mkdir(parents=True)
    (out / UNFINISHED).write_text("not whole")
    done = call("export", f"--checkpoint={published}", f"--output={out}")
    assert done.status == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    same_file(published / "model.safetensors", out / "model.safetensors")


def test_a_format_without_the_tokenizer_says_so(run, published, tmp_path):
    said = "This format does not include the tokenizer"
    for name, source, told in (("ours", run, True), ("theirs", published, False)):
        done = call("export", f"--checkpoint={source}", f"--output={tmp_path / name}")
        assert done.status == 0, done.stderr
        assert (said in done.stderr) is told
    done = call("export", f"--checkpoint={run}", f"--output={tmp_path / 'o'}", "--format=orbax")
    assert said not in done.stderr
