"""The suite "latency": the sampler at every number of steps, and a causal model of its size with a cache."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.evaluating.output import Output, environment
from experiments.evaluating.subject import Subject
from sdtt_jax.config import to_mapping
from sdtt_jax.evaluation.batches import batch_rows
from sdtt_jax.evaluation.latency import Latency, causal_latency, sampler_latency
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.config import of_same_size
from sdtt_jax.parallel.mesh import RULES, mesh_if_any, use_mesh
from sdtt_jax.parallel.placement import tree_shardings, unbox

Json = dict[str, Any]
Say = Callable[[str], None]


class Limits(NamedTuple):
    """Of one timing."""

    repeats: int
    budget_s: float


class Racer(NamedTuple):
    """A causal model to time.

    Attributes:
      name: of its items.
      what: in words.
      network: the network.
      params: makes the parameters when they are needed.
    """

    name: str
    what: str
    network: CausalNetwork
    params: Callable[[], Any]


def latency(subject: Subject, output: Output, say: Say) -> None:
    """Runs the suite; finished items are not timed again, unless on another device."""
    settings, model = subject.settings, subject.model
    key = purpose_key(settings.seed, "evaluate.latency")
    limits = Limits(settings.repeats, settings.latency_budget_s)
    runners = racers(subject, key)
    for batch in settings.latency_batches:
        rows = batch_rows(model.params, batch)
        common = {
            "length": subject.length,
            "batch": batch,
            "rows": rows,
            "precision": subject.identity["precision"],
            "environment": _machine(),
            "limits": limits._asdict(),
        }
        for racer in runners:
            name = f"latency/{racer.name}_batch_{batch:03d}"
            inputs = {"network": to_mapping(racer.network.config), **common}

            def causal(rows: int = rows, racer: Racer = racer) -> Latency:
                return causal_latency(
                    racer.network,
                    racer.params(),
                    key,
                    batch=rows,
                    length=subject.length,
                    **limits._asdict(),
                )

            facts: Json = {"kind": "autoregressive", "what": racer.what}
            _timed(output, name, inputs, facts, causal, say)
        if not isinstance(model, Model):
            continue
        for num_steps in settings.latency_steps:
            config = settings.sampler(num_steps)
            name = f"latency/steps_{num_steps:04d}_batch_{batch:03d}"
            inputs = {
                "model": subject.identity["digest"],
                "sampler": to_mapping(config),
                "seed": settings.seed,
                **common,
            }

            def diffusion(rows: int = rows, config: Any = config, model: Model = model) -> Latency:
                return sampler_latency(
                    model.diffusion,
                    model.params,
                    key,
                    config,
                    batch=rows,
                    length=subject.length,
                    **limits._asdict(),
                )

            facts = {"kind": "diffusion", "num_steps": num_steps}
            _timed(output, name, inputs, facts, diffusion, say)


def racers(subject: Subject, key: jax.Array) -> list[Racer]:
    """The causal model of the denoiser's size, and the baseline if it has another one."""
    model, baseline = subject.model, subject.baseline
    if not isinstance(model, Model):
        return [Racer("autoregressive", "the model itself", model.network, lambda: model.params)]
    network = CausalNetwork(of_same_size(CausalConfig, model.config))
    fresh = functools.cache(functools.partial(_fresh, network, key, mesh_if_any(model.params)))
    found = [Racer("autoregressive", "as large as the denoiser, not trained", network, fresh)]
    if baseline is not None and baseline.config != network.config:
        found.append(Racer("baseline", "the baseline", baseline.network, lambda: baseline.params))
    return found


def _timed(
    output: Output,
    name: str,
    inputs: Json,
    facts: Json,
    measure: Callable[[], Latency],
    say: Say,
) -> None:
    batch, length = inputs["batch"], inputs["length"]

    def compute() -> Json:
        found = measure()
        return {
            **facts,
            "batch": batch,
            "rows": inputs["rows"],
            "length": length,
            "seconds": found.median,
            "seconds_each": list(found.seconds),
            # Rows that only fill the mesh are no text that was asked for.
            "tokens_per_second": batch * length / found.median,
            "seconds_per_call": found.seconds_per_call,
            "nfe": found.nfe,
            "compile_s": found.compile_s,
        }

    result = output.item(name, inputs, compute)
    title = name.removeprefix("latency/").replace("_", " ")
    say(
        f"  {title}: {result['seconds']:.4g} s, {result['tokens_per_second']:,.0f} tokens/s, "
        f"{1e3 * result['seconds_per_call']:.3g} ms per call of {result['nfe']}, compiled in "
        f"{result['compile_s']:.3g} s"
    )


def _machine() -> Json:
    """What a time depends on; another machine's is measured anew."""
    found = environment()
    return {name: found[name] for name in ("device", "platform", "num_devices")} | {
        "jax": found["packages"]["jax"]
    }


def _fresh(network: CausalNetwork, key: jax.Array, mesh: Any) -> Any:
    """Parameters as training begins with them: how long a call takes does not depend on them."""

    def init(key: jax.Array) -> Any:
        return unbox(network.init(key))

    if mesh is None:
        return jax.jit(init)(key)
    boxed = jax.eval_shape(network.init, key)
    shardings = tree_shardings(boxed, RULES, mesh)
    with use_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(key)
