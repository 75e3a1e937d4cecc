"""Runs of published models, planned without them. Oracle: sizes of the models, counted by hand."""

import dataclasses

import jax
import pytest

from experiments.configs.llada_8b import of_published
from launch.ahead.programs import build
from launch.ahead.published import KNOWN, network_of_run
from launch.ahead.search import least_split
from launch.ahead.topologies import parse_topology
from sdtt_jax.errors import CheckpointError
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh

# Of a block: four maps of attention and three of the MLP, two norms; then embedding, head, last norm.
BLOCKS = 32 * (4 * 4096**2 + 3 * 4096 * 12_288)
REST = 2 * 126_464 * 4096 + 32 * 2 * 4096 + 4096
# Inputs and outputs of the adapted maps, each times the rank.
ADAPTERS = 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 12_288))


def state(config):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return build("distill", config, mesh, 4, 1).state


def test_a_distillation_of_eight_billion_parameters_holds_them_once():
    """In bfloat16 but for embedding, head and norms; adapters are held five times: as parameters, average,
    two moments, and the teacher's."""
    found = state(of_published("GSAI-ML/LLaDA-8B-Base"))
    assert found["base"] == 2 * BLOCKS + 4 * REST
    assert found["parameters"] == found["average"] == 4 * ADAPTERS
    assert found["optimizer"] == pytest.approx(8 * ADAPTERS, rel=1e-6)
    assert found["teacher"] == pytest.approx(4 * ADAPTERS, rel=1e-6)
    assert sum(found.values()) - found["base"] < 0.11 * found["base"]


def test_one_chip_takes_adapters_and_not_all_parameters():
    config, chip = of_published("GSAI-ML/LLaDA-8B-Base"), parse_topology("h100:1")
    found = least_split(config, chip, jax.devices()[:1])
    assert found is not None
    assert found[1] == state(config)
    assert least_split(whole(config), chip, jax.devices()[:1]) is None


def whole(config):
    """Without adapters."""
    return dataclasses.replace(
        config, distill=dataclasses.replace(config.distill, lora=LoraConfig())
    )


def test_without_adapters_everything_is_held_five_times():
    config = whole(of_published("GSAI-ML/LLaDA-8B-Base"))
    assert sum(state(config).values()) == pytest.approx(5 * 4 * (BLOCKS + REST), rel=1e-6)


@pytest.mark.parametrize(("name", "billions"), [("GSAI-ML/LLaDA-8B-Base", 8.02), ("qwen3", 0.596)])
def test_published_sizes(name, billions):
    name = next(known for known in KNOWN if name.lower() in known.lower())
    network, was_causal = network_of_run(of_published(name))
    assert not was_causal
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)
    assert network.config.padded_vocab == network.config.columns


def test_a_model_that_is_neither_known_nor_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        network_of_run(of_published(str(tmp_path / "missing")))
