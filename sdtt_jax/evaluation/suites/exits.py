"""The suite "exits": the threshold of early exits that keeps a promise, calibrated on held-out text.

It is stored beside the checkpoint, where `early_exit` finds it by its bound.
"""

from sdtt_jax.evaluation.exits import EXITS, calibrate, check_exits
from sdtt_jax.evaluation.record import Json, Record
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.texts import held_out, held_out_name
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.learnt import store_fitted
from sdtt_jax.parallel import processes


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; a finished item is not computed again."""
    settings, model = subject.settings, subject.denoiser("exits")
    check_exits(model)
    tokens, batch_size = held_out(subject), settings.batch_size
    bound, failure = settings.exit_bound, settings.exit_failure
    inputs = subject.inputs(model, [tokens]) | {"failure": failure}

    def compute() -> Json:
        key = purpose_key(settings.seed, "evaluate.exits")
        found = calibrate(model, tokens, key, bound=bound, failure=failure, batch_size=batch_size)
        facts = {"kind": "diffusion", "bound": bound, "failure": failure, "num_texts": len(tokens)}
        source = {"num_layers": model.config.num_layers, "source": held_out_name(subject)}
        return facts | found._asdict() | source

    result = record.item(f"exits/bound_{bound}", inputs, compute)
    record.log(
        f"  {result['layers']:.2f} of {result['num_layers']} layers on average, and "
        f"{result['disagreement']:.4f} of the likeliest tokens change"
    )
    if model.folder is not None and processes.is_first():
        entry = {name: result[name] for name in ("threshold", "failure")}
        path = store_fitted(model, EXITS, {str(bound): entry})
        record.log(f"  written to {path}: --early_exit={bound} takes it")
