"""The exported sampler. Oracle: the live one with the same key."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.diffusion.decoders.learnt import SCHEDULES
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.exits import with_exits
from sdtt_jax.interchange.stablehlo import (
    PLATFORMS,
    all_params,
    export_stablehlo,
    exported_sampler,
)
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.exiting import Exiting, untrained_exits
from tests.worlds import as_causal, noisy_params


def test_it_runs_without_this_library(model, tmp_path):
    """In a process that cannot import sdtt_jax, the runner writes what `Model.sample` writes.

    Of a model of instructions too, which begins after BOS.
    """
    prompted = dataclasses.replace(model, facts=model.facts | {"sequences": "prompted"})
    assert (np.asarray(prompted.prior(1)) != prompted.mask_id).any()
    models, runners = {"packed": model, "prompted": prompted}, {}
    for name, each in models.items():
        export_stablehlo(each, tmp_path / name, SamplerConfig(4), 3)
        runners[name] = str(tmp_path / name / "run.py")
    code = (
        "import sys, runpy; sys.modules['sdtt_jax'] = None; sys.argv = ['run.py', '7']\n"
        f"for path in {[*runners.values()]!r}: runpy.run_path(path)\n"
        "for seed in ('--help', '-1', str(2**32), str(2**63), '1.5', 'x', '٣', '7 8'):\n"
        "    sys.argv[1:] = seed.split()\n"
        f"    try: runpy.run_path({runners['packed']!r})\n"
        "    except SystemExit as stop: print(ascii(stop.code))\n"
        # As a sampler with guidance describes itself.
        "import pathlib; path = pathlib.Path('packed/sampler.json'); sys.argv[1:] = []\n"
        "path.write_text(path.read_text().replace('\"guidance\": 0.0', '\"guidance\": 2.0'))\n"
        f"try: runpy.run_path({runners['packed']!r})\n"
        "except SystemExit as stop: print(stop.code)"
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
    live = [each.sample(jax.random.key(7), 3, 4, batch_size=3) for each in models.values()]
    expected = "\n".join(model.tokenizer.decode(row) for row in np.concatenate(live))
    assert done.stdout.startswith(f"{expected}\n")
    lines = done.stdout.removeprefix(f"{expected}\n").splitlines()
    told, refused, more, guided = lines[:-8], lines[-8:-2], lines[-2], lines[-1]
    assert "python run.py [SEED]" in "\n".join(told)
    assert all("must be a whole number from 0 to 4294967295." in line for line in refused)
    assert "Error: unknown argument 8; give SEED alone." in more
    assert "Error: guidance=2 needs a given text; put a prompt into `start`" in guided


def test_one_that_ends_early_leaves_no_program_of_an_older_one(model, tmp_path, monkeypatch):
    """`run.py` wrote with the older parameters by the new sampler. Oracle: when the program is written."""
    export_stablehlo(model, tmp_path, SamplerConfig(4), 1)
    monkeypatch.setattr("sdtt_jax.interchange.stablehlo.write_tensors", lambda *_: sys.exit(9))
    with pytest.raises(SystemExit):
        export_stablehlo(model, tmp_path, SamplerConfig(2), 1)
    assert not (tmp_path / "run.py").exists()


# Settings beside the decoder's own.
FILTERS = {"first-hitting": {"temperature": 0.8, "top_k": 5, "top_p": 0.9}}
# Options with which each decoder does something on texts of 12 tokens in 4 calls.
OPTIONS = {
    "entropy-bounded": ":bound=8,order_temperature=1",
    "remdm": ":eta=0.5",
    "remdm-confidence": ":eta=0.5",
    "speculative": ":window=4",
    "blocks": ":length=3",
    "refine": ":rounds=1,window=6,threshold=0.3",
    "skeleton": ":every=4",
    "energy": ":candidates=2",
}


def judging(model):
    """A causal model with the model's vocabulary, for decoders that ask one."""
    sizes = CausalConfig(model.config.vocab_size, 32, num_layers=1, embed_dim=16, num_heads=2)
    network = CausalNetwork(sizes)
    return as_causal(network, noisy_params(network, 0), model.tokenizer)


def prepared(model, folder, **facts):
    """`model` with other parameters, and a schedule of four calls beside them."""
    (folder / SCHEDULES).write_text(f'{{"4": "1/2/3/{model.config.length - 6}/"}}')
    facts = model.facts | {"path": str(folder)} | facts
    return dataclasses.replace(model, params=noisy_params(model.denoiser, 1), facts=facts)


def assert_exported(model, mode, helper, *starts, **filters):
    """The sampler, exported, stored and read again, writes what the live one writes; a key for each start."""
    config = SamplerConfig(4, mode=mode, **filters)
    stored = exported_sampler(model, config, len(starts[0]), helper=helper).serialize()
    exported = export.deserialize(bytearray(stored))
    assert exported.platforms == PLATFORMS
    for seed, x_init in enumerate(starts, 1):
        key = jax.random.key(seed)
        tokens = exported.call(all_params(model, helper), jax.random.key_data(key), x_init)
        np.testing.assert_array_equal(tokens, model.denoise(key, x_init, config, helper).x)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_goes_out_with_its_helper(model, name, tmp_path):
    """The program also holds settings that come from elsewhere, such as the schedule of `learnt`."""
    model, kinds = prepared(model, tmp_path), DECODERS[name].helper
    helpers = {"causal": judging, "denoiser": lambda model: model}
    helper = helpers[kinds[0]](model) if kinds else None
    starts = model.prior(2, ["in the", ""]), model.prior(2)
    assert_exported(model, name + OPTIONS.get(name, ""), helper, *starts, **FILTERS.get(name, {}))


def test_texts_of_one_sequence_are_told_apart_in_the_program_too(model, tmp_path):
    model = prepared(model, tmp_path, sequences="documents")
    x_init = model.prior(2).at[:, model.config.length // 2].set(model.tokenizer.eos_id)
    assert_exported(model, "grid", None, x_init, x_init)


def test_early_exits_go_out_with_the_program(model, tmp_path):
    """Trained ones too; the threshold is one at which some texts leave and others do not."""
    model, rng = prepared(model, tmp_path), np.random.default_rng(0)
    leaving = dataclasses.replace(model, denoiser=Exiting(model.denoiser, 0.5, least=1))
    assert_exported(leaving, "first-hitting", None, *[leaving.prior(2)] * 2)
    exits = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), untrained_exits(model.config)
    )
    assert_exported(with_exits(leaving, exits), "first-hitting", None, *[leaving.prior(2)] * 2)


def test_a_helper_that_is_missing_is_asked_for(model):
    with pytest.raises(ConfigError, match="needs another model; pass a denoiser as its helper"):
        exported_sampler(model, SamplerConfig(4, mode="staged"), 2)


def test_no_texts_are_refused(model):
    with pytest.raises(ConfigError, match="batch_size must be positive"):
        exported_sampler(model, SamplerConfig(4), 0)
