"""Teacher and rounds whose adapters alone are trained. Oracles: base and adapters as they are on disk, the
unbroken run, and bytes counted by hand.
"""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdtt_jax
from experiments.settings import config_dict, run_config
from experiments.stages import training as training_stages
from experiments.stages.replay import replay
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import Checkpoints, load_params, save_params
from sdtt_jax.errors import CheckpointError, ConfigError, MismatchError
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.networks.lora import LoraConfig, with_adapters
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import place_whole
from sdtt_jax.training.step import make_train_step
from sdtt_jax.trees import flat_leaves
from tests.experiments.small import small
from tests.experiments.test_adaptation import STAGES, adapting, base  # noqa: F401 - a fixture
from tests.worlds import noisy_params

LORA = LoraConfig(rank=2, base_dtype="bfloat16", targets=("attn_q", "attn_out", "down"))
FOLDERS = ("teacher", "rounds/01", "rounds/02")


def with_lora(folder, base):  # noqa: F811
    config = run_config(adapting(folder, base))
    return dataclasses.replace(
        config,
        teacher=dataclasses.replace(config.teacher, lora=LORA),
        distill=dataclasses.replace(config.distill, num_rounds=2, lora=LORA),
    )


def opened(config, root):
    return open_run(config_dict(config), root)


@pytest.fixture(scope="module")
def config(base, tmp_path_factory):  # noqa: F811
    return with_lora(tmp_path_factory.mktemp("lora"), base)


@pytest.fixture(scope="module")
def done(config, compiled_once, tmp_path_factory):  # noqa: ARG001
    root = tmp_path_factory.mktemp("done") / "run"
    with opened(config, root) as run:
        run_stages(run, STAGES)
    return root


def test_what_is_delivered_are_adapters_and_the_base_is_there_once(done):
    adapters = [load_params(done / folder / "final") for folder in FOLDERS]
    names = {f"blocks/{n}/{ab}" for n in ("attn_q", "attn_out", "mlp/down") for ab in "ab"}
    assert all(set(flat_leaves(params)) == names for params, _ in adapters)
    assert len({params_digest(params) for params, _ in adapters}) == 3
    assert len({meta["base"]["digest"] for _, meta in adapters}) == 1
    frozen, _ = load_params(done / "base" / "final")
    assert frozen["blocks"]["mlp"]["down"]["kernel"].dtype == jnp.bfloat16
    with Checkpoints(done / "rounds" / "01") as checkpoints:
        folder = done / "rounds" / "01" / str(checkpoints.steps[-1]) / "meta"
    held = "".join(path.read_text() for path in folder.iterdir() if path.is_file())
    assert "teacher_params/blocks/attn_q/a" in held
    assert "embedding" not in held


def test_a_model_is_loaded_and_exported_merged(done, tmp_path):
    model = sdtt_jax.load(done)
    adapters, meta = load_params(done / "rounds" / "02" / "final")
    frozen, _ = load_params(done / "base" / "final")
    x_t = np.full((1, 16), model.mask_id, np.int32)
    x_t[0, :3] = 5, 6, 7

    @jax.jit
    def logits(frozen, adapters):
        beside = with_adapters(frozen, adapters, LORA)
        return model.denoiser.logits(beside, model.denoiser.hidden(beside, x_t))

    expected = logits(frozen, adapters)
    np.testing.assert_allclose(
        model.logits(x_t), expected[..., : model.mask_id + 1], atol=1e-5, rtol=1e-5
    )
    assert model.facts["round"] == meta["round"] == 2
    export_reference(model, tmp_path / "hub")
    export_orbax(model, tmp_path / "orbax")
    for folder in ("hub", "orbax"):
        np.testing.assert_allclose(
            sdtt_jax.load(tmp_path / folder).logits(x_t), model.logits(x_t), atol=1e-5
        )


def test_it_is_loaded_within_a_mesh_that_the_caller_has_set(done):
    """Oracle: the parameters as they are loaded without."""
    with jax.set_mesh(jax.make_mesh((1,), ("x",))):
        model = sdtt_jax.load(done, mesh=make_mesh(MeshConfig()))
    assert params_digest(model.params) == params_digest(sdtt_jax.load(done).params)


def test_the_devices_hold_the_base_once(config, done):
    """The compiled step's arguments: the state with one base, a batch and a key."""
    with opened(config, done) as run:
        job = training_stages.training_job(run, "distill", 2)
        with Checkpoints(job.folder) as checkpoints:
            state = job.state(checkpoints)
        key, batch = place_whole(job.key, run.mesh), job.batch_at(0)
        analysis = job.step_fn.lower(state, batch, key).compile().memory_analysis()

    def size(tree):
        return sum(x.nbytes for x in jax.tree.leaves(tree))

    adapters, frozen = size(state.params), size(state.context["base"])
    assert frozen > 4 * adapters
    # Adapters, average, two moments, and the teacher's.
    assert analysis.argument_size_in_bytes < frozen + 5 * adapters + size(batch) + 1000
    assert analysis.alias_size_in_bytes > frozen
    # Its temporaries have no room for another base or for a gradient of it.
    whole = 4 * sum(x.size for x in jax.tree.leaves(state.context["base"]["blocks"]))
    assert size(state.opt_state) < 2 * adapters + 100 < whole


def test_stopped_in_a_stage_or_round_it_goes_on_with_the_same_bits(config, done, tmp_path):
    """Killed between the checkpoints of steps 2 and 4, each training goes on from step 2."""
    root = tmp_path / "run"
    shutil.copytree(done, root)
    for folder in FOLDERS:
        for lost in ("4", "final"):
            shutil.rmtree(root / folder / lost)
    (root / "metrics.jsonl").unlink()
    with opened(config, root) as run:
        run_stages(run, STAGES)
        replay(run, "distill/2@2")
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    went_on = [(round, step) for round in (0, 1, 2) for step in (3, 4)]
    assert [(line["round"], line["step"]) for line in lines] == went_on
    for folder in FOLDERS:
        digests = [params_digest(load_params(path / folder / "final")[0]) for path in (done, root)]
        assert digests[0] == digests[1], folder


def test_another_base_is_refused(config, done, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(done, root)
    frozen, meta = load_params(root / "base" / "final")
    frozen["final"]["scale"] = frozen["final"]["scale"] + 1
    save_params(root / "base" / "final", frozen, meta)
    with pytest.raises(CheckpointError, match=r"of a base of digest \w{12}, and .* has"):
        sdtt_jax.load(root)
    with opened(config, root) as run:
        job = training_stages.training_job(run, "distill", 2)
        with Checkpoints(job.folder) as checkpoints, pytest.raises(MismatchError, match="its base"):
            job.state(checkpoints)
    shutil.rmtree(root / "base")
    with pytest.raises(CheckpointError, match="has their base base/final"):
        sdtt_jax.load(root)


def test_students_of_a_teacher_that_was_trained_whole(tmp_path, monkeypatch):
    """The teacher is their base; the first round's student starts as the teacher."""
    monkeypatch.setattr(training_stages, "make_train_step", make_train_step)
    config = run_config(small(tmp_path))
    lora = LoraConfig(rank=2)
    distill = dataclasses.replace(config.distill, num_rounds=1, lora=lora)
    with opened(dataclasses.replace(config, distill=distill), tmp_path / "run") as run:
        run_stages(run, ("data",))
        run.deliver(
            run.workdir.teacher, run.denoiser, noisy_params(run.denoiser, 0), stage="teacher"
        )
        state = training_stages.training_job(run, "distill", 1).start()
        added = {path: np.asarray(leaf) for path, leaf in flat_leaves(state.params).items()}
        assert all(not leaf.any() for path, leaf in added.items() if path[-1] == "b")
        run_stages(run, ("distill",))
    teacher, student = sdtt_jax.load(tmp_path / "run/teacher"), sdtt_jax.load(tmp_path / "run")
    before, after = flat_leaves(teacher.params), flat_leaves(student.params)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {f"blocks/{n}/kernel" for n in ("attn_qkv", "attn_out", "mlp/up", "mlp/down")}


def test_targets_that_the_network_lacks_are_told_before_anything_is_made(tmp_path):
    """They were told when a teacher had been trained; the directory is free again."""
    distill = dataclasses.replace(run_config(small(tmp_path)).distill, lora=LoraConfig(2))
    config = dataclasses.replace(run_config(small(tmp_path)), distill=distill)
    for targets, said in (("gate",), "choose from: attn_qkv, attn_out, up, down"), (("up",), ""):
        lora = dataclasses.replace(distill.lora, targets=targets)
        asked = dataclasses.replace(config, distill=dataclasses.replace(distill, lora=lora))
        refused = pytest.raises(ConfigError, match=said) if said else contextlib.nullcontext()
        with refused, opened(asked, tmp_path / "run") as run:
            training_stages.check_found_elsewhere(run, STAGES)
        assert not (tmp_path / "run" / "data").exists()


def test_settings_that_do_not_go_together_are_named(config):
    with pytest.raises(ConfigError, match=r"which teacher\.init_from must name"):
        dataclasses.replace(config.teacher, init_from="")
    other = dataclasses.replace(config.distill, lora=dataclasses.replace(LORA, rank=3))
    with pytest.raises(ConfigError, match=r"teacher\.lora and distill\.lora differ"):
        dataclasses.replace(config, distill=other)
