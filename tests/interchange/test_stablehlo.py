"""The exported sampler. Oracle: the live one with the same key."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.stablehlo import (
    PLATFORMS,
    all_params,
    export_stablehlo,
    exported_sampler,
)
from sdtt_jax.networks import CausalConfig, CausalNetwork
from tests.worlds import as_causal, noisy_params

CONFIGS = [
    SamplerConfig(num_steps=4),
    SamplerConfig(num_steps=3, mode="first-hitting", temperature=0.8, top_k=5, top_p=0.9),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["grid", "first-hitting, filtered"])
def test_it_writes_the_same_tokens_as_the_live_sampler(model, config):
    exported = export.deserialize(bytearray(exported_sampler(model, config, 2).serialize()))
    assert exported.platforms == PLATFORMS
    for seed, x_init in enumerate([model.prior(2), model.prior(2, ["in the", ""])]):
        key = jax.random.key(seed)
        tokens = exported.call(all_params(model), jax.random.key_data(key), x_init)
        np.testing.assert_array_equal(tokens, model.denoise(key, x_init, config).x)


def test_it_runs_without_this_library(model, tmp_path):
    """In a process that cannot import sdtt_jax, the runner writes what the live sampler does."""
    export_stablehlo(model, tmp_path, CONFIGS[0], 3)
    code = (
        "import sys, runpy; sys.modules['sdtt_jax'] = None; "
        f"sys.argv = ['run.py', '7']; runpy.run_path({str(tmp_path / 'run.py')!r})\n"
        "for seed in ('-1', str(2**32), str(2**63), '1.5', 'x', '٣'):\n"
        "    sys.argv[1:] = [seed]\n"
        f"    try: runpy.run_path({str(tmp_path / 'run.py')!r})\n"
        "    except SystemExit as stop: print(ascii(stop.code))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    live = model.denoise(jax.random.key(7), model.prior(3), CONFIGS[0]).x
    expected = ["".join(model.tokenizer.pieces(row)) for row in np.asarray(live)]
    texts, refused = done.stdout.splitlines()[:3], done.stdout.splitlines()[3:]
    assert texts == expected
    assert len(refused) == 6
    assert all("must be a whole number from 0 to 4294967295." in line for line in refused)


def decoders(model):
    """A mode, its helper, and what the model is told of its sequences."""
    causal = CausalConfig(model.config.vocab_size, 32, num_layers=1, embed_dim=16, num_heads=2)
    judge = as_causal(
        CausalNetwork(causal), noisy_params(CausalNetwork(causal), 0), model.tokenizer
    )
    yield "staged", model, {}
    yield "skeleton:every=4", judge, {}
    yield "learnt", None, {}
    yield "grid", None, {"sequences": "documents"}


@pytest.mark.parametrize("index", range(4))
def test_every_decoder_goes_out_with_its_helper(model, index, tmp_path):
    """Settings that the sampler takes from elsewhere are in the program too."""
    mode, helper, facts = list(decoders(model))[index]
    length = model.config.length
    (tmp_path / "schedules.json").write_text(f'{{"4": "1/2/3/{length - 6}/"}}')
    model = dataclasses.replace(
        model,
        params=noisy_params(model.denoiser, 1),
        facts=model.facts | {"path": str(tmp_path)} | facts,
    )
    config, key = SamplerConfig(4, mode=mode), jax.random.key(1)
    exported = exported_sampler(model, config, 2, helper=helper)
    x_init = model.prior(2).at[:, length // 2].set(model.tokenizer.eos_id)  # two documents
    tokens = exported.call(all_params(model, helper), jax.random.key_data(key), x_init)
    np.testing.assert_array_equal(tokens, model.denoise(key, x_init, config, helper).x)


def test_a_helper_that_is_missing_is_asked_for(model):
    with pytest.raises(ConfigError, match="needs another model; give it a helper"):
        exported_sampler(model, SamplerConfig(4, mode="staged"), 2)


def test_no_texts_are_refused(model):
    with pytest.raises(ConfigError, match="batch_size must be positive"):
        exported_sampler(model, CONFIGS[0], 0)
