"""Published checkpoints through `sdtt_jax.load`. Oracles: golden values, the file itself, a mesh of one."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

import sdtt_jax
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange import load as loading
from sdtt_jax.interchange.hub import TOKENIZER_FILES
from sdtt_jax.interchange.renaming import write_params
from sdtt_jax.interchange.tables.reference import HUB_PREFIX, denoiser_table
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.fixture(scope="module")
def reference(golden):
    return golden / "reference_tiny"


def published_config(reference, **changes):
    """The config in the nested form in which the reference stores it."""
    sizes = json.loads((reference / "config.json").read_text())["model"] | changes
    return {"config": {"model": sizes, "time_conditioning": False, "noise": {"type": "loglinear"}}}


@pytest.fixture
def folder(reference, tmp_path):
    """A repository as downloaded: `model.safetensors` and `config.json`."""
    shutil.copy(reference / "teacher_hub.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(published_config(reference)))
    return tmp_path


@pytest.mark.parametrize("name", ["teacher_hub", "teacher_nested", "student_hub"])
def test_golden_log_probabilities_through_the_public_call(reference, name):
    model = sdtt_jax.load(reference / f"{name}.safetensors")
    values = np.load(reference / "forward.npz")
    who = "student" if name.startswith("student") else "teacher"
    xt = values["xt"]
    ours = np.asarray(model.log_probs(xt))
    masked = xt == model.denoiser.mask_id
    np.testing.assert_allclose(
        ours[masked][:, :-1], values[f"{who}_log_probs"][masked][:, :-1], rtol=1e-5, atol=1e-5
    )


def test_a_folder_has_its_length_from_its_config(folder, reference):
    model = sdtt_jax.load(folder)
    assert (
        model.config.length
        == json.loads((reference / "config.json").read_text())["model"]["length"]
    )
    assert not model.config.time_conditioned
    assert model.facts["path"] == str(folder)
    assert sdtt_jax.load(folder / "model.safetensors").config == model.config


def test_without_a_config_the_sizes_come_from_the_tensors(folder):
    expected = sdtt_jax.load(folder).config
    (folder / "config.json").unlink()
    found = sdtt_jax.load(folder).config
    assert found.length == 1024
    assert (
        found.embed_dim,
        found.num_layers,
        found.num_heads,
        found.cond_dim,
        found.vocab_size,
    ) == (
        expected.embed_dim,
        expected.num_layers,
        expected.num_heads,
        expected.cond_dim,
        expected.vocab_size,
    )


def test_what_comes_in_goes_out_bit_for_bit(folder):
    model = sdtt_jax.load(folder)
    written = write_params(
        denoiser_table(model.config), jax.tree.map(np.asarray, model.params), HUB_PREFIX
    )
    original = load_file(folder / "model.safetensors")
    assert written.keys() == original.keys()
    for name, array in original.items():
        assert written[name].dtype == array.dtype, name
        assert written[name].tobytes() == array.tobytes(), name


def test_parameters_go_straight_to_their_places_on_a_mesh(folder):
    mesh = make_mesh(MeshConfig())
    plain, placed = sdtt_jax.load(folder), sdtt_jax.load(folder, mesh=mesh)
    for leaf in jax.tree.leaves(placed.params):
        assert leaf.sharding.mesh == mesh
    jax.tree.map(np.testing.assert_array_equal, plain.params, placed.params)


def test_half_precision_weights_are_widened(folder):
    tensors = load_file(folder / "model.safetensors")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        save_file({n: x.astype(dtype) for n, x in tensors.items()}, folder / "model.safetensors")
        kernel = sdtt_jax.load(folder).params["blocks"]["mlp"]["up"]["kernel"]
        assert kernel.dtype == jnp.float32
        expected = tensors["backbone.blocks.0.mlp.0.weight"].astype(dtype).astype(np.float32).T
        np.testing.assert_array_equal(kernel[0], expected)


def test_text_of_a_model_with_another_vocabulary_is_refused(folder):
    model = sdtt_jax.load(folder)
    assert model.sample(jax.random.key(0), 2, 2).shape == (2, model.config.length)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        model.sample(jax.random.key(0), 2, 2, prompt="x")


def edited(change):
    def apply(folder):
        tensors = dict(load_file(folder / "model.safetensors"))
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def reconfigured(text):
    return lambda folder: (folder / "config.json").write_text(text)


NAME = "backbone.blocks.1.mlp.2.weight"
FAULTS = {
    "truncated": (truncated, "model.safetensors cannot be read as safetensors"),
    "missing": (edited(lambda t: t.pop(NAME)), f"1 tensor is missing: {NAME}"),
    "extra": (
        edited(lambda t: t.update(more=np.zeros(2, np.float32))),
        "not part of this model: more",
    ),
    "shape": (edited(lambda t: t.update({NAME: t[NAME][:-1]})), f"{NAME} has shape"),
    "dtype": (edited(lambda t: t.update({NAME: t[NAME].astype(np.int32)})), f"{NAME} is I32"),
    "NaN": (edited(lambda t: t[NAME].__setitem__((0, 0), np.nan)), f"{NAME} holds NaN"),
    "config": (
        reconfigured(json.dumps({"model": {"hidden_size": 128}})),
        "says hidden_size=128, but the tensors",
    ),
    "JSON": (reconfigured("{"), "config.json cannot be read as JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_error_that_names_it(folder, fault):
    damage, message = FAULTS[fault]
    damage(folder)
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(CheckpointError) as caught:
        sdtt_jax.load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt", "model.pt"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"is pickled.*safetensors.torch.save_file"):
        sdtt_jax.load(tmp_path / name)


def test_a_path_that_does_not_exist_is_named():
    with pytest.raises(CheckpointError, match="no checkpoint at /no/such/run"):
        sdtt_jax.load("/no/such/run")


class TestHub:
    """Oracle: a folder in place of the hub, and the errors that the hub's library raises."""

    @pytest.fixture
    def asked(self, monkeypatch, folder):
        calls = []

        def download(repo, file, revision=None, **_):
            calls.append((repo, file, revision))
            return str(folder / file)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        return calls

    @pytest.mark.parametrize(
        ("call", "repo", "revision"),
        [
            (
                lambda: sdtt_jax.load_small_student("kld", 7),
                "jdeschena/sdtt",
                "baselines_kld_step_70000",
            ),
            (
                lambda: sdtt_jax.load_small_student("tvd", 1),
                "jdeschena/sdtt",
                "baselines_tvd_step_10000",
            ),
            (
                lambda: sdtt_jax.load_scaling_student("lg", 3),
                "jdeschena/sdtt",
                "scaling_400k_large_step_30000",
            ),
            (
                lambda: sdtt_jax.load_scaling_teacher("md"),
                "jdeschena/sdtt",
                "teacher_400k_md_step_400000",
            ),
            (sdtt_jax.load_mdlm_small, "kuleshov-group/mdlm-owt", None),
            (lambda: sdtt_jax.load("some/repo", "v2"), "some/repo", "v2"),
            (lambda: sdtt_jax.load("some/repo@v2"), "some/repo", "v2"),
        ],
    )
    def test_published_names(self, asked, call, repo, revision):
        model = call()
        names = ("model.safetensors", "config.json", *TOKENIZER_FILES)
        assert asked == [(repo, name, revision) for name in names]
        assert model.facts["path"] == (f"{repo}@{revision}" if revision else repo)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: sdtt_jax.load_small_student("kl"), "choose one of kld, mse, tvd"),
            (lambda: sdtt_jax.load_small_student("kld", 8), "1 to 7"),
            (lambda: sdtt_jax.load_small_student("kld", 2.0), "round must be a whole number"),
            (lambda: sdtt_jax.load_scaling_student("sm", True), "round must be a whole number"),
            (lambda: sdtt_jax.load_scaling_student("xl"), "choose one of sm, md, lg"),
            (lambda: sdtt_jax.load_scaling_teacher("xl"), "choose one of sm, md, lg"),
        ],
    )
    def test_names_that_do_not_exist(self, call, message):
        with pytest.raises(ConfigError, match=message):
            call()

    def test_a_hub_that_cannot_be_reached_says_which_files_to_bring(self, monkeypatch):
        def download(*_, **__):
            raise LocalEntryNotFoundError("no network")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        with pytest.raises(
            CheckpointError, match=r"some/repo@v2.*Download model.safetensors and config"
        ):
            sdtt_jax.load("some/repo", "v2")

    def test_a_hub_that_cannot_be_reached_is_asked_once(self, monkeypatch):
        asked = []

        def download(_repo, file, local_files_only=False, **_):
            asked.append((file, local_files_only))
            raise LocalEntryNotFoundError("no network")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        with pytest.raises(CheckpointError, match="neither a local path nor in the hub's cache"):
            sdtt_jax.load("some/repo")
        assert asked == [("model.safetensors", False), ("model.safetensors.index.json", True)]

    def test_a_misspelt_folder_is_not_taken_for_a_repository(self, monkeypatch, tmp_path):
        def download(*_, **__):
            raise AssertionError("the hub was asked")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "demo").mkdir(parents=True)
        with pytest.raises(
            CheckpointError,
            match=r"no checkpoint at runs/dmo; did you mean 'demo'\? .* runs/dmo@main",
        ):
            sdtt_jax.load("runs/dmo")
        with pytest.raises(AssertionError, match="the hub was asked"):
            sdtt_jax.load("runs/dmo@main")

    def test_a_repository_without_safetensors_is_refused(self, monkeypatch):
        def download(*_, **__):
            raise EntryNotFoundError("404")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        with pytest.raises(CheckpointError, match=r"has no model.safetensors. Pickled"):
            sdtt_jax.load("some/repo")

    def test_a_revision_is_for_repositories(self, folder):
        with pytest.raises(CheckpointError, match="is for repositories"):
            sdtt_jax.load(folder, "v1")

    def test_repositories_are_told_from_paths(self):
        assert loading.REPOSITORY.fullmatch("owner/name-1.0")
        assert not loading.REPOSITORY.fullmatch("a/b/c")
        assert not loading.REPOSITORY.fullmatch("name")
