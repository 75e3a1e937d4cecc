"""Runs of published models, planned without them. Oracle: sizes of the models, counted by hand."""

import dataclasses

import jax
import pytest

from experiments.configs.llada_8b import of_published
from experiments.configs.owt_small import owt
from launch.ahead import hlo
from launch.ahead.networks import KNOWN, Planned
from launch.ahead.programs import build, kinds_of
from launch.ahead.search import meshes
from launch.ahead.topologies import parse_topology
from sdtt_jax.errors import CheckpointError
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh

# Each block: four maps of attention and three of the MLP. The rest: embedding, head, and all norms.
BLOCKS = 32 * (4 * 4096**2 + 3 * 4096 * 12_288)
REST = 2 * 126_464 * 4096 + 32 * 2 * 4096 + 4096
# Inputs and outputs of the adapted maps, each times the rank.
ADAPTERS = 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 12_288))


def state(config):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return build("distill", config, mesh, 4, 1).state


def test_a_distillation_of_eight_billion_parameters_holds_them_once():
    """The base is in bfloat16 but for embedding, head and norms; adapters are held five times: as parameters,
    average, two moments, and the teacher's."""
    found = state(of_published("GSAI-ML/LLaDA-8B-Base"))
    assert found["base"] == 2 * BLOCKS + 4 * REST
    assert found["parameters"] == found["average"] == 4 * ADAPTERS
    assert found["optimizer"] == pytest.approx(8 * ADAPTERS, rel=1e-6)
    assert found["teacher"] == pytest.approx(4 * ADAPTERS, rel=1e-6)
    assert sum(found.values()) - found["base"] < 0.11 * found["base"]


def test_one_chip_takes_adapters_and_not_all_parameters():
    config, chip = of_published("GSAI-ML/LLaDA-8B-Base"), parse_topology("h100:1")
    _, found = next(meshes("distill", config, chip, jax.devices()[:1]))
    assert found == state(config)
    assert not list(meshes("distill", whole(config), chip, jax.devices()[:1]))


def whole(config):
    """The same config without adapters."""
    return dataclasses.replace(
        config, distill=dataclasses.replace(config.distill, lora=LoraConfig())
    )


def test_without_adapters_everything_is_held_five_times():
    config = whole(of_published("GSAI-ML/LLaDA-8B-Base"))
    assert sum(state(config).values()) == pytest.approx(5 * 4 * (BLOCKS + REST), rel=1e-6)


def test_a_teacher_that_is_loaded_takes_no_steps():
    assert kinds_of(of_published("GSAI-ML/LLaDA-8B-Base")) == ("distill", "sample")
    assert kinds_of(owt("small")) == ("distill", "teacher", "sample")


@pytest.mark.parametrize(("name", "billions"), [("GSAI-ML/LLaDA-8B-Base", 8.02), ("qwen3", 0.596)])
def test_published_sizes(name, billions):
    name = next(known for known in KNOWN if name.lower() in known.lower())
    planned = Planned(of_published(name))
    network, was_causal = planned.denoiser, planned.was_causal
    assert not was_causal
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)
    assert network.config.padded_vocab == network.config.columns


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [True, False])
def test_counted_flops_agree_with_those_from_the_sizes(monkeypatch, adapted):
    """With what `remat="full"` recomputes; within a tenth, as the adapters' own products are left out."""
    name = "GSAI-ML/LLaDA-8B-Base"
    sizes = {
        "num_layers": 4, "embed_dim": 128, "num_heads": 2, "num_kv_heads": 2, "head_dim": 64, "mlp_dim": 384,
        "vocab_size": 799,
    }  # fmt: skip
    monkeypatch.setitem(KNOWN, name, dataclasses.replace(KNOWN[name], **sizes))
    config = of_published(name)
    lora = dataclasses.replace(config.distill.lora, rank=1 if adapted else 0, base_dtype="float32")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, length=64),
        model=dataclasses.replace(config.model, compute_dtype="float32"),
        distill=dataclasses.replace(config.distill, lora=lora),
    )
    assert config.model.remat == "full"
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = build("distill", config, mesh, 16, 1)
    text = program.lower().compile().as_text()
    counted = hlo.Module(text, tuple(mesh.shape), (1, 1, 1), program.trips_of).cost().flops
    assert counted / (program.flops + program.recomputed) == pytest.approx(1, abs=0.1)


def test_a_model_that_is_neither_known_nor_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        _ = Planned(of_published(str(tmp_path / "missing"))).denoiser
