"""The suite "schedule": learns from held-out text how many tokens each call reveals, at which temperature.

The schedule is stored with the checkpoint, where `mode=learnt` finds it.
"""

import functools

import numpy as np

from sdtt_jax.diffusion.decoders.learnt import SCHEDULES, numbers_text
from sdtt_jax.evaluation.record import Json, Record
from sdtt_jax.evaluation.schedules import best_counts, gap, information_curve
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.temperatures import best_temperatures
from sdtt_jax.evaluation.texts import held_out, held_out_name, require_held_out
from sdtt_jax.evaluation.unknown import log_unknown
from sdtt_jax.model.learnt import not_stored, store_fitted
from sdtt_jax.parallel import processes


def check(subject: Subject) -> None:
    """Raises an error for a subject that the suite cannot measure."""
    subject.denoiser("schedule").require_likelihood()
    require_held_out(subject)


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; finished items are not computed again."""
    settings, model, tokens = subject.settings, subject.denoiser("schedule"), held_out(subject)
    log_unknown(record, model.tokenizer, tokens, "held-out text")
    seed, maskings, batch_size = settings.seed, settings.num_maskings, settings.batch_size
    inputs = subject.inputs(model, [tokens]) | {"num_maskings": maskings}
    inputs["call_temperatures"] = settings.call_temperatures

    @functools.cache
    def curve() -> np.ndarray:
        return information_curve(model, tokens, seed, num_maskings=maskings, batch_size=batch_size)

    def learn(num_steps: int) -> Json:
        counts, length = best_counts(curve(), num_steps), tokens.shape[1]
        # As "first-hitting" deals them out.
        dealt = np.bincount(np.arange(length) * num_steps // length, minlength=num_steps)
        found: Json = {"counts": numbers_text(counts)}
        if settings.call_temperatures:
            scales = best_temperatures(model, tokens, counts, seed, batch_size)
            found["temperatures"] = numbers_text(scales)
        return found | {
            "kind": "diffusion",
            "num_steps": num_steps,
            "gap": gap(curve(), counts),
            "even_gap": gap(curve(), tuple(dealt.tolist())),
            "source": held_out_name(subject),
        }

    found = {}
    source = {"source": held_out_name(subject)}
    fields = ["counts", "temperatures"]
    for num_steps in settings.num_steps:
        item = f"schedule/steps_{num_steps:04d}"
        result = record.item(item, inputs, functools.partial(learn, num_steps), source)
        learnt = {name: result[name] for name in fields if name in result}
        found[str(num_steps)] = learnt
        record.log(
            f"  {num_steps} calls: {result['gap']:.3f} nats above one token per call, "
            f"{result['even_gap']:.3f} with even counts: {', '.join(learnt.values())}"
        )
    if "variant" in model.facts:
        record.log("  not stored for --mode=learnt: leave out --early_exit and --neighbours")
    elif why := not_stored(model, tokens.shape[1], "counts are"):
        record.log(f"  not stored for --mode=learnt: {why}")
    elif model.folder is not None and processes.is_first():
        path = store_fitted(model, SCHEDULES, found)
        record.log(f"  written to {path}: --mode=learnt uses them")
