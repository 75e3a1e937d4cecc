"""The steps of the other distillers, compiled ahead. Oracle: FLOPs from the sizes alone."""

import dataclasses

import jax
import pytest

from experiments.configs import owt_coupled
from experiments.configs.owt_one_round import get_config
from experiments.configs.owt_small import owt
from experiments.distillers import ONE_ROUND
from experiments.settings import run_config
from launch.ahead import hlo, programs
from launch.ahead.programs import build, check_kinds
from sdtt_jax.config import changed
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh, mesh_of, use_mesh


class Gradient:
    """A training step without its optimizer, which multiplies no matrices: a third less to compile.

    The step of the rounds is compiled with it, in `test_networks`.
    """

    def __init__(self, loss, train):
        del train
        self.loss = loss

    def lower(self, state, batch, key):
        def gradient(state, batch, key):
            return jax.grad(lambda params: self.loss(params, state.context, batch, key).total)(
                state.params
            )

        with use_mesh(mesh_of(state.step)):
            return jax.jit(gradient).lower(state, batch, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "idlm", "coupled_idlm"])
def test_counted_flops_agree_with_those_from_the_sizes(name, monkeypatch):
    """Within a tenth: time embedding and noise network of a small network are left out."""
    monkeypatch.setattr(programs, "make_train_step", Gradient)
    config = run_config(get_config(name))
    sizes = {"num_layers": 4, "embed_dim": 64, "num_heads": 2, "cond_dim": 16}
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, compute_dtype="float32", **sizes),
        tokenizer=dataclasses.replace(config.tokenizer, kind="sentencepiece", vocab_size=800),
        data=dataclasses.replace(config.data, length=64),
        coupled=dataclasses.replace(config.coupled, noise=NoiseConfig("two-level", hidden_dim=8)),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = build(name, config, mesh, 16, 1)
    text = program.lower().compile().as_text()
    counted = hlo.Module(text, tuple(mesh.shape), (1, 1, 1), program.trips_of).cost().flops
    assert counted / (program.flops + program.recomputed) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ONE_ROUND)
def test_state_is_what_each_keeps(name):
    """The fake of inverse distillation is as large as its student; alpha has no teacher."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = build(name, run_config(get_config(name)), mesh, 1, 1).state
    teachers = {"alpha": 0.0, "idlm": 0.5, "coupled_idlm": 0.5}.get(name, 1.0)
    assert state["teacher"] == pytest.approx(teachers * state["parameters"], rel=0.01)
    assert state["optimizer"] == pytest.approx(2 * state["parameters"], rel=1e-3)


def test_a_coupled_step_that_infers_its_noise_holds_the_teacher_beside_the_student(monkeypatch):
    monkeypatch.setattr(programs, "make_train_step", Gradient)
    config = run_config(owt_coupled.get_config())
    stage = dataclasses.replace(config.coupled, num_calls=2, num_trajectories=0, hindsight=True)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    stored = build("coupled", config, mesh, 1, 1)
    made = build("coupled", dataclasses.replace(config, coupled=stage), mesh, 1, 1)
    assert stored.state["teacher"] == 0
    assert 0.97 < made.state["teacher"] / made.state["parameters"] < 1  # without a noise network
    assert "while" in made.lower().as_text()


def test_distillers_that_a_run_could_not_train_are_not_compiled():
    """A config checks those that it names; mmd, asked for beside it, ended in an error of JAX's scan."""
    for name in ONE_ROUND:
        check_kinds(["distill", name], run_config(get_config(name)))
    check_kinds(["distill", "causal", "coupled_idlm"], owt("small"))
    for kind, fields, said in (
        ("mmd", {"model": {"num_layers": 2}}, r"mmd.layer=4 does not exist: model.num_layers=2"),
        ("coupled_idlm", {"coupled": {"noise": {"kind": "masks"}}}, "noise determines its tokens"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_kinds(["distill", kind], changed(owt("small"), **fields))


def test_a_distiller_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="choose one of alpha, mixture, mmd, idlm"):
        get_config("dmd")
