"""What a path means. Oracle: the folders that were written, and the tokenizer they were written with."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdtt_jax
from sdtt_jax.checkpoints.store import load_params, save_params
from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.card import measured_results, model_card
from sdtt_jax.interchange.load import is_on_hub, load_network
from sdtt_jax.paths import as_path
from tests.interchange.llama_models import MASK, model_of, repository, tensors, write

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 100\n"
POINTED = ["model.safetensors", "model.safetensors.index.json", "model.gguf"]
OTHER_TEXT = ["the quick brown fox jumps over the lazy dog"] * 4


def with_facts(final, to, **facts):
    """A copy of a delivered folder with more or fewer facts about itself."""
    params, meta = load_params(final)
    known = {name: value for name, value in (meta | facts).items() if value is not None}
    save_params(to, params, known)


def write_tokenizer(folder, texts, vocab_size=64):
    config = TokenizerConfig(model_type="char", vocab_size=vocab_size)
    tokenizer = train_tokenizer(config, texts, "text8")
    (folder / "tokenizer").mkdir(parents=True)
    save_tokenizer(tokenizer, folder / "tokenizer")
    return tokenizer


class TestTokenizers:
    def test_the_nearest_is_taken_only_if_it_is_the_models(self, run, model, tmp_path):
        """Older checkpoints only store its size; a digest tells another one of the same size apart."""
        final, digest = run / "teacher" / "final", model.tokenizer.digest
        other = write_tokenizer(tmp_path / "other", OTHER_TEXT)
        assert other.vocab_size != model.tokenizer.vocab_size
        shutil.copytree(final, tmp_path / "other" / "teacher" / "final")
        with pytest.raises(
            CheckpointError, match=r"other/tokenizer .* is not the tokenizer .*final"
        ):
            sdtt_jax.load(tmp_path / "other" / "teacher" / "final")

        letters = sorted(set("".join(OTHER_TEXT)) - {" "})[: model.tokenizer.vocab_size - 4]
        same_size = write_tokenizer(tmp_path / "same", ["".join(letters) + " " + letters[0]] * 4)
        assert same_size.vocab_size == model.tokenizer.vocab_size
        with_facts(final, tmp_path / "same" / "new" / "final", tokenizer=digest)
        with pytest.raises(
            CheckpointError, match=f"digest {digest[:12]}.*copy that run's tokenizer"
        ):
            sdtt_jax.load(tmp_path / "same" / "new" / "final")
        # The right one in a folder above is found.
        shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
        assert sdtt_jax.load(tmp_path / "same" / "new" / "final").tokenizer.digest == digest

    def test_one_that_only_normalises_otherwise_is_another_one(self, run, model, tmp_path):
        """The digest is of the model file alone. Older checkpoints do not store how text is normalised."""
        shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
        for said in (None, "text8", "none"):
            final = tmp_path / str(said) / "final"
            with_facts(
                run / "teacher" / "final", final, tokenizer=model.tokenizer.digest, normalize=said
            )
            if said != "none":
                assert sdtt_jax.load(final).tokenizer.normalize == "text8"
                continue
            said_so = (
                r"normalize='text8'\) is not the tokenizer that .*normalize='none'\); copy that"
            )
            with pytest.raises(CheckpointError, match=said_so):
                sdtt_jax.load(final)

    def test_a_link_is_followed_to_the_tokenizer(self, run, model, tmp_path):
        (tmp_path / "latest").symlink_to(run / "rounds" / "01" / "final")
        assert sdtt_jax.load(tmp_path / "latest").tokenizer.digest == model.tokenizer.digest


class TestRuns:
    def test_a_model_is_of_the_run_in_which_it_stands_and_was_trained(self, run, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
        final = run / "teacher" / "final"
        with_facts(final, tmp_path / "teacher" / "final", stage="teacher", data="abc")
        with_facts(final, tmp_path / "kept" / "final", stage="teacher", data="abc")
        with_facts(final, tmp_path / "teacher" / "old" / "final", stage="teacher", data="abc")
        model = sdtt_jax.load(tmp_path / "teacher")
        assert model.run_folder == tmp_path
        for elsewhere in ("kept", "teacher/old"):
            assert sdtt_jax.load(tmp_path / elsewhere).run_folder is None

        measured = {"steps": {"4": {"gen_ppl": 7.0, "entropy": 1.0}}, "params_digest": "another's"}
        results = {"teacher": measured, "rounds": []}
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert "7.00" not in model_card(model, "orbax", measured_results(model))
        measured["params_digest"] = model.identity["digest"]
        assert "7.00" in model_card(model, "orbax", results)

        (tmp_path / "data").mkdir()
        for fingerprint, right in (("abc", True), ("abd", False)):
            info = {"info": {"fingerprint": fingerprint}}
            (tmp_path / "data" / "info.json").write_text(json.dumps(info))
            again = sdtt_jax.load(tmp_path / "teacher")
            if right:
                assert again.run_folder == tmp_path
                continue
            with pytest.raises(CheckpointError, match="was trained on other data than its run"):
                _ = again.run_folder


class TestFolders:
    """A folder is judged by its content, and an error says what cannot be read."""

    def test_delivered_parameters_may_be_called_anything(self, run, tmp_path):
        shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
        shutil.copytree(run / "teacher" / "final", tmp_path / "best")
        assert sdtt_jax.load(tmp_path / "best").facts["stage"] == "teacher"

    @pytest.mark.parametrize("inner", ["rounds", "coupled", ""])
    def test_the_last_round_is_that_of_the_largest_number(self, run, tmp_path, inner):
        """A hundred rounds have names of three digits, which sort as text before those of two."""
        shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
        for number in ("99", "100"):
            place = tmp_path / inner / number / "final"
            place.parent.mkdir(parents=True)
            place.symlink_to(run / "teacher" / "final")
        asked = tmp_path if inner == "rounds" else tmp_path / inner
        assert sdtt_jax.load(asked).facts["path"].endswith("100/final")

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (
                ["model-00001-of-00002.safetensors"],
                r"several files need their model\.safetensors\.index",
            ),
            (["pytorch_model.bin"], "pytorch_model.bin, pickled weights"),
            (["a.pt", "config.json"], "a.pt, pickled weights"),
            (["weights.safetensors"], "It holds weights.safetensors: give the file itself"),
            (["adapter_model.safetensors", "adapter_config.json"], "an adapter"),
            (["flax_model.msgpack"], "flax_model.msgpack, a format that is not read"),
            (["model-q4.gguf"], "It holds model-q4.gguf: give the file itself"),
            (["tf_model.h5"], "tf_model.h5, a format that is not read"),
            (["_METADATA", "manifest.ocdbt", "d"], "an Orbax checkpoint of another program"),
            (
                ["100", "20"],
                r"checkpoints \(steps 20, 100\) of a training run that has not finished",
            ),
            (["config.json", "data", "metrics.jsonl"], "a run none of whose models has finished"),
            (["config.json", "data"], "a run none of whose models has finished"),
            (["notes.txt"], "It holds notes.txt."),
            ([], "It is an empty folder"),
            ([".lock"], "It is an empty folder"),
            *(
                ([name, "sampler.json"], "an export that was stopped: repeat the command")
                for name in (".unfinished-export", ".model.safetensors.0a1b2c3d")
            ),
            (
                ["params.safetensors", "run.py", "sampler.json", "sampler.stablehlo"],
                r"an exported sampler, .*`python run\.py SEED` there",
            ),
        ],
        ids=str,
    )
    def test_a_folder_without_a_model_says_what_it_holds(self, tmp_path, names, said):
        for name in names:
            if "." in name:
                (tmp_path / name).write_bytes(b"")
            else:
                (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=f"{tmp_path} holds no finished model.*{said}"):
            sdtt_jax.load(tmp_path)

    def test_a_bucket_that_does_not_answer_is_asked_once(self, monkeypatch):
        """Each question is repeated for half a minute. Oracle: what a bucket's library raises."""
        path, asked = as_path("gs://bucket/run"), []

        def exists(_):
            asked.append("exists")
            raise OSError("no route")

        monkeypatch.setattr(type(path), "exists", exists)
        monkeypatch.setattr(type(path), "is_dir", asked.append)
        with pytest.raises(OSError, match="no route"):
            sdtt_jax.load(path)
        assert asked == ["exists"]

    @pytest.mark.parametrize("path", ["", None, 3, b"runs/demo"])
    def test_a_path_that_is_none_is_refused(self, path):
        """An empty one, such as that of an unset variable, would otherwise be the current folder."""
        with pytest.raises(ConfigError, match=f"path must be the path or the name .*{path!r}"):
            sdtt_jax.load(path)

    @pytest.mark.parametrize("part", ["", "state", "meta"])
    def test_a_step_of_a_training_names_its_stage(self, tmp_path, part):
        for name in ("state", "meta"):
            (tmp_path / "teacher" / "560" / name).mkdir(parents=True)
            (tmp_path / "teacher" / "560" / name / "_METADATA").touch()
        said = f"a training checkpoint: give {tmp_path}/teacher\\."
        with pytest.raises(CheckpointError, match=said):
            sdtt_jax.load(tmp_path / "teacher" / "560" / part)

    def test_the_hubs_cache_names_its_snapshots(self, tmp_path):
        snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
        for folder in (snapshot, snapshot.parents[1] / "refs", snapshot.parents[1] / "blobs"):
            folder.mkdir(parents=True)
        with pytest.raises(CheckpointError, match=f"the hub's cache: give {snapshot}"):
            sdtt_jax.load(snapshot.parents[1])

    def test_a_part_of_a_model_names_the_model(self, run):
        final = run / "teacher" / "final"
        with pytest.raises(CheckpointError, match=f"It is a part of a model: give {final}\\."):
            sdtt_jax.load(final / "params")

    @pytest.mark.parametrize("section", ["model", "schedule"])
    def test_a_model_of_a_newer_version_names_itself(self, run, tmp_path, section):
        """Oracle: the folder, and the field that this version does not have."""
        shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
        final = run / "teacher" / "final"
        _, facts = load_params(final)
        newer = {section: facts[section] | {"novelty": 1}}
        with_facts(final, tmp_path / "final", **newer)
        said = f"{tmp_path}/final was not stored by this version .*{section} has no field 'novelty'"
        with pytest.raises(CheckpointError, match=said):
            sdtt_jax.load(tmp_path / "final")

    def test_a_folder_one_level_too_high_names_the_model_in_it(self, run, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "demo").symlink_to(run)
        # A complete copy: only its name says that it may be incomplete.
        (tmp_path / "demo.orbax-checkpoint-tmp").symlink_to(run)
        said = f"It holds demo, .*other; did you mean {tmp_path}/demo\\?"
        with pytest.raises(CheckpointError, match=said):
            sdtt_jax.load(tmp_path)

    def test_a_model_without_its_parameters_says_so(self, run, golden, monkeypatch):
        """Nor does it read them, to throw them away."""
        for name in ("read_delivered", "placed_params"):
            monkeypatch.delattr(f"sdtt_jax.interchange.load.{name}")
        for path in (run, golden / "gpt2_tiny"):
            model = load_network(path)
            assert (model.mesh, model.params) == (None, {})
            assert "parameters not read, vocabulary of" in repr(model)

    def test_what_would_be_found_is_known_without_reading_it(self, run, tmp_path):
        (tmp_path / "empty").mkdir()
        for path in (run, run / "teacher"):
            model = sdtt_jax.load(path)
            found = load_network(path)
            assert (found.denoiser, found.facts) == (model.denoiser, model.facts)
            assert not is_on_hub(path)
        assert all(map(is_on_hub, ("owner/name", "owner/name@main")))
        for path in (tmp_path / "none", tmp_path / "empty", run / "data"):
            with pytest.raises(CheckpointError):
                load_network(path)

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("model.gguf", b"GGUF", "cannot be read as GGUF"),
            ("results.json", b'{"teacher": 1}', "results.json is not a .safetensors or .gguf file"),
            ("model.safetensors.index.json", b"{}", "has no weight_map"),
            *((name, POINTER, f"{name} is a Git LFS pointer .* git lfs pull") for name in POINTED),
            ("adapter_model.safetensors", b"", r"an adapter \(LoRA\)"),
            ("model-00002-of-00003.safetensors", b"", "one of the 3 files .* give their folder"),
        ],
    )
    def test_a_file_of_another_kind_says_so(self, tmp_path, name, content, said):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            sdtt_jax.load(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_pointer_beside_a_model_is_named(tmp_path, name):
    folder = repository(tmp_path / "m", "a2d-qwen2", mask_token_id=None)
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer"):
        sdtt_jax.load(folder, mask_id=None if name == "tokenizer_config.json" else MASK)


def test_a_model_with_an_adapter_beside_it_is_asked_about(tmp_path):
    """Other libraries apply the adapter."""
    folder = repository(tmp_path / "m", "llama")
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"an adapter \(LoRA\) beside model.safetensors"):
        load_network(folder)
    assert load_network(folder / "model.safetensors").config.num_layers == 2


def test_tensors_of_another_network_are_not_called_incomplete_alone(tmp_path):
    """Fused projections, as GLM's."""
    config, _, weights = model_of("llama")
    named = tensors("llama", weights)
    gate = "model.layers.0.mlp.gate_proj.weight"
    named[gate.replace("gate", "gate_up")] = named.pop(gate)
    folder = write(tmp_path / "m", config | {"model_type": "glm"}, named)
    said = (
        r"gate_proj.weight is missing \(there are .*mlp\.gate_up_proj.* belongs to a network that"
    )
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(folder, causal=True)


WRAPS = ["_orig_mod.{}", "module.{}", "module._orig_mod.{}", "_forward_module.{}", "inner"]


@pytest.mark.parametrize("wrap", WRAPS)
def test_names_are_read_without_what_wraps_a_module(golden, tmp_path, wrap):
    """torch.compile, DataParallel, DeepSpeed and FSDP prefix all names with a word, or those of one part."""
    path = golden / "reference_tiny" / "teacher_hub.safetensors"

    def renamed(name):
        inner = name.replace("backbone.", "backbone._fsdp_wrapped_module.", 1)
        return inner if wrap == "inner" else wrap.format(name)

    tensors = load_file(path)
    file = tmp_path / "model.safetensors"
    save_file({renamed(name): array for name, array in tensors.items()}, file)
    found = sdtt_jax.load(file)
    jax.tree.map(np.testing.assert_array_equal, found.params, sdtt_jax.load(path).params)
    name, array = next(iter(tensors.items()))
    save_file({name: array, renamed(name): array}, file)
    with pytest.raises(CheckpointError, match="twice"):
        sdtt_jax.load(file)


def test_a_misspelt_name_is_answered_by_the_right_one():
    with pytest.raises(
        CheckpointError, match=r"at smollm \(did you mean 'smollm2'\?\); give a run"
    ):
        sdtt_jax.load("smollm")


@pytest.mark.parametrize("name", ["last", "runs/last", "runs/last/teacher", "runs/loop"])
def test_a_link_that_leads_nowhere_is_named(name, tmp_path, monkeypatch):
    """The answer was "did you mean 'last'?", or that the hub has no such repository."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for link in ("last", "runs/last"):
        (tmp_path / link).symlink_to("/gone")
    (tmp_path / "runs" / "loop").symlink_to("loop")
    leads = "loop" if "loop" in name else "/gone"
    said = f"{name.removesuffix('/teacher')} is a link to {leads}, which leads nowhere"
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"length": 0}, "length must be positive, not 0"),
        ({"length": 8.5}, "length must be a whole number, not 8.5"),
        ({"mask_id": -1}, "mask_id must be at least 0, not -1"),
        ({"mask_id": 2.5}, "mask_id must be a whole number, not 2.5"),
        ({"causal": "no"}, "causal must be True or False, not 'no'"),
        ({"shift": 1}, "shift must be True or False, not 1"),
    ],
)
def test_what_is_said_is_of_its_kind(golden, given, said):
    with pytest.raises(ConfigError, match=said):
        sdtt_jax.load(golden / "gpt2_tiny", **{"causal": False} | given)


@pytest.mark.parametrize("dtype", [3, [], "half", np.float16])
def test_a_dtype_that_no_network_computes_in_is_named(golden, dtype):
    with pytest.raises(ConfigError, match=r"compute_dtype=.* is unknown.*; choose one of float32"):
        sdtt_jax.load(golden / "gpt2_tiny", compute_dtype=dtype)


class TestFirstToken:
    """Oracle: packing, which puts BOS before every sequence of a wrapped corpus."""

    def test_what_is_given_stands_behind_bos_if_every_sequence_began_with_it(
        self, run, model, tmp_path
    ):
        shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
        with_facts(run / "rounds" / "01" / "final", tmp_path / "final", begins_with_bos=True)
        wrapped, bos = sdtt_jax.load(tmp_path), model.tokenizer.bos_id
        given = [
            model.mask_id if i == model.mask_id else int(i) for i in model.prior(1, "in the")[0]
        ]
        assert wrapped.prior(1, "in the")[0].tolist() == [bos, *given[:-1]]
        infill = wrapped.prior(1, infill="[3]a")[0].tolist()
        assert infill[:5] == [bos, *[model.mask_id] * 3, int(model.tokenizer.encode_part("a")[0])]
        assert (np.asarray(wrapped.prior(2)) == model.mask_id).all()
        text = wrapped.sample(jax.random.key(0), 1, 2, prompt="in the")[0]
        assert wrapped.tokenizer.decode(text).startswith("in the")
        # A model trained without BOS still writes the same text for a key.
        assert model.first_token is None
        assert given[0] != bos
