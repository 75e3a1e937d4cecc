"""The settings of an evaluation. Oracle: values that cannot work, written by hand."""

import dataclasses
import re

import pytest

from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.settings import Sampling, Settings


def test_the_sampler_is_that_of_the_fields():
    sampling = Sampling(mode="first-hitting", temperature=0.5, top_k=3, top_p=0.9)
    expected = SamplerConfig(8, mode="first-hitting", temperature=0.5, top_k=3, top_p=0.9)
    assert sampling.sampler(8) == expected
    assert Sampling().sampler(8) == SamplerConfig(8)


def test_the_help_of_mode_names_every_decoder():
    [mode] = [field for field in dataclasses.fields(Settings) if field.name == "mode"]
    for name in DECODERS:
        assert re.search(rf"{name}[,.]", mode.metadata["help"]), name


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_steps": ()}, "num_steps"),
        ({"num_texts": 0}, "num_texts"),
        ({"estimators": ("exact",)}, "estimators='exact'"),
        ({"first_token": "guessed"}, "first_token"),
        ({"ends": "open"}, "ends"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16'"),
        ({"task": "squad"}, "task='squad' is unknown; choose one of lambada"),
        ({"time_grid": "round"}, "time_grid"),
        ({"seed": -1}, "seed"),
        ({"early_exit": 1.0}, "early_exit"),
        ({"neighbour_share": 1.0}, "neighbour_share"),
        ({"exit_bound": 0.0}, "exit_bound"),
        ({"held_out_folder": "texts"}, "--held_out_folder=texts needs --held_out=NAME"),
        ({"neighbour_share": 0.5}, "--neighbour_share needs --neighbours"),
        ({"neighbour_count": 3}, "--neighbour_count needs --neighbours"),
        (
            {"modes": "grid,first-hitting"},
            "--modes=grid,first-hitting: modes are separated by spaces, as",
        ),
        ({"modes": "grid gird"}, r"--modes: mode='gird' is unknown .*first-hitting[^.]*\.$"),
        (
            {"modes": "grid first-hitting", "time_grid": "cosine"},
            "has no effect with mode='first-hitting'",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        Settings(**fields)
