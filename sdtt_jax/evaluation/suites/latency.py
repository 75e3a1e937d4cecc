"""The suite "latency": how long texts take, by the sampler at each number of steps and by a causal model."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.causal.sampler import generate
from sdtt_jax.config import to_mapping
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.evaluation.record import Json, Record, environment
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.interchange.adapters import network_shardings
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.base import as_helper_of
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.learnt import with_stored_schedule
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.config import of_same_size
from sdtt_jax.parallel.mesh import full_batch
from sdtt_jax.parallel.placement import place_batch, place_whole, unbox


@dataclasses.dataclass(frozen=True)
class Timing:
    """The timings to make, and their repetitions."""

    batch: int  # texts
    length: int  # tokens of a text
    repeats: int = 5  # repetitions after one to warm up
    # After the first, no repetition begins once all of them together have taken this many seconds.
    budget_s: float = 60.0


class Latency(NamedTuple):
    """Whole generations of one batch."""

    compile_s: float  # seconds of lowering and compiling (little if a cache had the program)
    seconds: list[float]  # of each repetition, after one that warmed up
    nfe: int  # network calls of one repetition


def measure_latency(
    model: Model | CausalModel,
    key: jax.Array,
    config: SamplerConfig | None,
    timing: Timing,
    helper: Model | CausalModel | None = None,
) -> Latency:
    """Whole unconditional generations; every repetition draws the same texts.

    Args:
      model: a denoiser, or a causal model, which writes token by token with its key-value cache from one
        token of prompt.
      key: PRNG key.
      config: a denoiser's sampler.
      timing: sizes and repetitions.
      helper: the second model of a decoder that needs one.
    """
    other: dict[str, Any] = {}
    if isinstance(model, CausalModel):
        write: Any = functools.partial(
            generate, model.network, num_tokens=timing.length, sequences=model.sequences
        )
        rows = jnp.zeros((timing.batch, 1), jnp.int32)
    else:
        assert config is not None
        write = functools.partial(
            sample, model.diffusion, config=with_stored_schedule(config, model)
        )
        if helper is not None:
            other["helper"] = as_helper_of(helper, model)
        rows = prior_sample(timing.batch, timing.length, model.mask_id)
    if model.mesh is not None:
        key, rows = place_whole(key, model.mesh), place_batch(rows, model.mesh)
    began = time.perf_counter()
    with model.on_mesh():
        program = jax.jit(write).lower(model.params, key, rows, **other).compile()
    compile_s = time.perf_counter() - began
    written = jax.block_until_ready(program(model.params, key, rows, **other))
    calls = timing.length if isinstance(model, CausalModel) else int(written[0].nfe)
    seconds: list[float] = []
    while len(seconds) < timing.repeats and (not seconds or sum(seconds) < timing.budget_s):
        began = time.perf_counter()
        jax.block_until_ready(program(model.params, key, rows, **other))
        seconds.append(time.perf_counter() - began)
    return Latency(compile_s, seconds, calls)


class Racer(NamedTuple):
    """Something to time."""

    name: str  # of its items
    load: Callable[[], Model | CausalModel]  # gives the model when it is needed
    config: SamplerConfig | None  # a denoiser's sampler; None for a causal model
    facts: Json  # of the results
    inputs: Json  # what determines them
    helper: Model | CausalModel | None = None  # the second model of a decoder that needs one


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; finished items are not timed again, unless on another device."""
    settings = subject.settings
    key = purpose_key(settings.seed, "evaluate.latency")
    runners = racers(subject, key)
    for batch in settings.latency_batches:
        rows = full_batch(batch, subject.model.mesh)
        timing = Timing(rows, subject.length, settings.repeats, settings.latency_budget_s)
        for racer in runners:
            _item(record, racer, key, batch, timing)


def racers(subject: Subject, key: jax.Array) -> list[Racer]:
    """A causal model of the denoiser's size, the baseline if its config differs, and the sampler."""
    settings, model, baseline = subject.settings, subject.model, subject.baseline
    now = environment()
    # What a timing depends on; on another machine, or on another mesh of it, it is measured again.
    machine = {name: now[name] for name in ("device", "platform", "num_devices")}
    machine["jax"] = now["packages"]["jax"]
    divided = {} if model.mesh is None else {"mesh": dict(model.mesh.shape)}
    if divided:
        machine |= divided | {"num_processes": now["num_processes"]}
    common = {"compute_dtype": model.identity["compute_dtype"], "environment": machine}

    def causal(name: str, what: str, config: Any, load: Callable[[], CausalModel]) -> Racer:
        facts = {"kind": "autoregressive", "what": what} | divided
        return Racer(name, load, None, facts, common | {"network": to_mapping(config)})

    if isinstance(model, CausalModel):
        return [causal("autoregressive", "the model itself", model.config, lambda: model)]
    config = of_same_size(CausalConfig, model.config)
    fresh = functools.cache(functools.partial(_fresh, CausalNetwork(config), key, model))
    result = [causal("autoregressive", "as large as the denoiser, not trained", config, fresh)]
    if baseline is not None and baseline.config != config:
        result.append(causal("baseline", "the baseline", baseline.config, lambda: baseline))
    own = common | {"model": model.identity["digest"], "seed": settings.seed}
    for num_steps in settings.num_steps:
        sampler, helper, how = subject.sampler(model, num_steps, given=False)
        facts = {"kind": "diffusion", "num_steps": num_steps} | divided
        name = f"steps_{num_steps:04d}"
        result.append(Racer(name, lambda: model, sampler, facts, own | how, helper))
    return result


def _item(record: Record, racer: Racer, key: jax.Array, batch: int, timing: Timing) -> None:
    def compute() -> Json:
        measured = measure_latency(racer.load(), key, racer.config, timing, racer.helper)
        median = statistics.median(measured.seconds)
        return racer.facts | {
            "batch": batch,
            "rows": timing.batch,
            "length": timing.length,
            "seconds": median,
            "seconds_each": measured.seconds,
            # Rows that only fill the mesh are not texts that were asked for.
            "tokens_per_second": batch * timing.length / median,
            "seconds_per_call": median / measured.nfe,
            "nfe": measured.nfe,
            "compile_s": measured.compile_s,
        }

    name = f"{racer.name}_batch_{batch:03d}"
    inputs = racer.inputs | {"batch": batch, "timing": to_mapping(timing)}
    result = record.item(f"latency/{name}", inputs, compute)
    record.log(
        f"  {name.replace('_', ' ')}: {result['seconds']:.4g} s, {result['tokens_per_second']:,.0f} "
        f"tokens/s, {1e3 * result['seconds_per_call']:.3g} ms per call of {result['nfe']}, compiled in "
        f"{result['compile_s']:.3g} s"
    )


def _fresh(network: CausalNetwork, key: jax.Array, beside: Model) -> CausalModel:
    """An untrained model: how long a call takes does not depend on the parameters."""
    shardings = None if beside.mesh is None else network_shardings(network, beside.mesh)
    with beside.on_mesh():
        params = jax.jit(lambda key: unbox(network.init(key)), out_shardings=shardings)(key)
    return CausalModel(params=params, tokenizer=None, facts=beside.facts, network=network)
