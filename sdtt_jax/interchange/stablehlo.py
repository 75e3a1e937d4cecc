"""The sampler as one artifact for all platforms, by `jax.export`, and a program that needs no sdtt_jax."""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from sdtt_jax.config import to_mapping, whole
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.formats import write_json
from sdtt_jax.interchange.safetensors import write_tensors
from sdtt_jax.interchange.token_texts import read_tokens, token_texts
from sdtt_jax.keys import MAX_SEED
from sdtt_jax.model.base import Loaded, as_helper_of
from sdtt_jax.model.learnt import with_stored_schedule
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.sequences import Sequences, arrange
from sdtt_jax.paths import PathLike, as_path, write_text
from sdtt_jax.trees import flat_leaves, nested

PLATFORMS = ("cpu", "cuda", "tpu")
SAMPLER_FILE, PARAMS_FILE, DESCRIPTION_FILE, RUNNER_FILE = (
    "sampler.stablehlo",
    "params.safetensors",
    "sampler.json",
    "run.py",
)
HELPER = "helper"  # where its parameters are among the model's
RUNNER = '''\
"""Writes one batch of texts with the exported sampler. Needs jax and safetensors alone.

    python run.py [SEED]

The texts are those of the first batch of `python -m experiments.sample --seed=SEED`, at an equal batch size.
"""
import itertools, json, pathlib, signal, sys
from collections.abc import Iterable
from typing import Any
import jax, jax.export, numpy as np
from safetensors.numpy import load_file

READ_TOKENS
sys.stdout.reconfigure(errors="backslashreplace")
if hasattr(signal, "SIGPIPE"):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly in a pipe to head
folder = pathlib.Path(__file__).parent
info = json.loads((folder / "sampler.json").read_text("utf-8"))
sampler = jax.export.deserialize(bytearray((folder / "sampler.stablehlo").read_bytes()))
seed, *more = sys.argv[1:] or ["0"]
if seed in ("-h", "--help"):
    sys.exit(print(__doc__.strip()))
if more:
    sys.exit(f"Error: unknown argument {more[0]}; give SEED alone.")
if not (seed.isascii() and seed.isdecimal() and len(seed) <= 10 and int(seed) <= MAX_SEED):
    sys.exit(f"Error: SEED={seed} must be a whole number from 0 to MAX_SEED.")
key = jax.random.key(int(seed), impl="threefry2x32")
first = jax.random.key_data(jax.random.fold_in(key, 0))  # for another batch, fold in its number
params = load_file(folder / "params.safetensors")
start = np.tile(np.array(info["start"], np.int32), (info["batch_size"], 1))  # or with a prompt
guidance = info["sampler"]["guidance"]
if guidance and (start == info["mask_id"]).all():
    sys.exit(f"Error: guidance={guidance:g} needs a given text; put a prompt into `start` in {__file__}.")
for row in np.asarray(sampler.call(params, first, start)):
    print(read_tokens(info, row) if info["pieces"] else row.tolist(), flush=True)
'''.replace("MAX_SEED", str(MAX_SEED)).replace("READ_TOKENS", inspect.getsource(read_tokens))


def exported_sampler(
    model: Model, config: SamplerConfig, batch_size: int, helper: Loaded | Helper | None = None
) -> export.Exported:
    """The sampler for one batch size and number of steps, lowered for all of `PLATFORMS` at once.

    It takes the parameters by path (`all_params`), the data `[2]` uint32 of a threefry key, and
    `x_init: [batch_size, L]` int32, and returns the texts `[batch_size, L]` int32. `helper` is the second
    model of a decoder that needs one.

    Raises:
      ConfigError: the model, or its helper, cannot do what the decoder asks of it.
    """
    whole(1, batch_size=batch_size)
    other = as_helper_of(helper, model)
    static = None if other is None else dataclasses.replace(other, params=None)
    setting = model.diffusion, with_stored_schedule(config, model), model.sequences, static
    sampler = functools.partial(_sample, *setting)
    params = jax.eval_shape(lambda: all_params(model, other))
    key_data = jax.ShapeDtypeStruct((2,), np.uint32)
    x_init = jax.ShapeDtypeStruct((batch_size, model.config.length), np.int32)
    return export.export(jax.jit(sampler), platforms=PLATFORMS)(params, key_data, x_init)


def all_params(model: Model, helper: Loaded | Helper | None = None) -> dict[str, jax.Array]:
    """Parameters by path, `{"blocks/mlp/up/kernel": …}`; a helper's are below `helper/`."""
    other = as_helper_of(helper, model)
    beside = {} if other is None else {HELPER: other.params}
    return flat_leaves(model.params | beside)


def export_stablehlo(
    model: Model,
    directory: PathLike,
    config: SamplerConfig,
    batch_size: int,
    helper: Loaded | Helper | None = None,
) -> list[Path]:
    """Writes the sampler, its parameters, their description, and a program that runs them.

    The files go to `directory`; the other arguments are those of `exported_sampler`. Returns the paths of the
    artifact, the parameters, the JSON with sizes, settings and the text of each token, and the program.
    """
    exported = exported_sampler(model, config, batch_size, helper=helper)
    directory = as_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    description = {
        "batch_size": batch_size,
        "length": model.config.length,
        "mask_id": model.mask_id,
        # Not MASK alone for a model of instructions: BOS follows even an empty prompt.
        "start": np.asarray(model.prior(1))[0].tolist(),
        "platforms": list(exported.platforms),
        "sampler": to_mapping(with_stored_schedule(config, model)),
        **({"pieces": None} if model.tokenizer is None else token_texts(model.tokenizer)),
    }
    # Written last: until then no program runs a new sampler with an older export's parameters.
    (directory / RUNNER_FILE).unlink(missing_ok=True)
    (directory / SAMPLER_FILE).write_bytes(exported.serialize())
    params = {name: np.asarray(leaf) for name, leaf in all_params(model, helper).items()}
    write_tensors(directory / PARAMS_FILE, params)
    write_json(directory / DESCRIPTION_FILE, description, indent=None)
    write_text(directory / RUNNER_FILE, RUNNER)
    return [directory / name for name in (SAMPLER_FILE, PARAMS_FILE, DESCRIPTION_FILE, RUNNER_FILE)]


def _sample(
    diffusion: MaskedDiffusion,
    config: SamplerConfig,
    sequences: Sequences | None,
    helper: Helper | None,
    params: dict[str, Any],
    key_data: jax.Array,
    x_init: jax.Array,
) -> jax.Array:
    key, own = jax.random.wrap_key_data(key_data, impl="threefry2x32"), nested(params)
    theirs = own.pop(HELPER, None)
    if helper is not None:
        helper = dataclasses.replace(helper, params=theirs)
    model = diffusion.within(arrange(x_init, sequences))
    state, _ = sample(model, own, key, x_init, config, helper=helper)
    return state.x
