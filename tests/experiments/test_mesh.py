"""The mesh of a run must suit the networks of all its stages. Oracle: the message."""

import types

import pytest
from jax.sharding import AbstractMesh, AxisType

from experiments.configs.smoke import smoke
from experiments.stages.context import Run
from experiments.stages.runner import STAGE_NAMES
from experiments.stages.training import check_networks
from experiments.stages.workdir import Workdir, final
from sdtt_jax.config import changed
from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import AXES

CONFIG = changed(smoke(), distillers=("sdtt", "coupled"))


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("judge", {"judge": {"model": {"embed_dim": 48, "num_heads": 3}}}),
        ("coupled", {"coupled": {"noise": {"hidden_dim": 33}}}),
    ],
)
def test_a_mesh_that_does_not_divide_a_later_network_is_found_before_the_teacher_trains(
    tmp_path, where, fields
):
    def run(config):
        made = Run(config, Workdir(tmp_path), AbstractMesh((1, 1, 2), AXES, (AxisType.Auto,) * 3))
        vars(made)["info"] = types.SimpleNamespace(vocab_size=18)
        return made

    check_networks(run(CONFIG), STAGE_NAMES)
    other = run(changed(CONFIG, **fields))
    with pytest.raises(
        ConfigError, match=rf"network of config\.{where}: Parameter .* split into 2"
    ):
        check_networks(other, STAGE_NAMES)
    final(other.workdir.stage(where, int(where == "coupled"))).mkdir(parents=True)
    check_networks(other, ("data", "teacher", "judge") if where == "judge" else ("data", "judge"))
