"""Laws counted over samples. Oracle: the exact law of the same decoder."""

import jax
import pytest

from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.laboratory.decoders import decoder_law
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.sampled import Draws, mean_calls, sampled_measures
from sdtt_jax.laboratory.student import StudentConfig, make_diffusion, table_params
from sdtt_jax.laboratory.world import World

WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.1, 0.2), name="weather")
TRUTH = Truth.of(WORLD)
TEACHER = make_diffusion(WORLD, StudentConfig()), table_params(TRUTH.teacher)


@pytest.mark.parametrize("mode", ["confidence", "remdm:eta=0.3"])
def test_measures_are_those_of_the_exact_law(mode: str) -> None:
    """65,536 samples, standard errors below 0.01; seed 1."""
    law, _ = decoder_law(TRUTH.teacher, mode, 2)
    draws = Draws(2**16, seed=1)
    found = sampled_measures(TRUTH, *TEACHER, [2], draws, temperature=1.0, mode=mode)["2"]
    assert found.pop("samples") == 2**16
    assert found == pytest.approx(TRUTH.measures_of(law), abs=0.02)


def test_calls_are_those_of_the_exact_law() -> None:
    """Of a decoder that makes more calls for some texts: 16,384 texts, standard error below 0.004; seed 1."""
    _, calls = decoder_law(TRUTH.teacher, "remdm:eta=0.3", 2)
    config = SamplerConfig(2, mode="remdm:eta=0.3")
    made = mean_calls(*TEACHER, jax.random.key(1), config, WORLD.length)
    assert float(made) == pytest.approx(calls, abs=0.016)
